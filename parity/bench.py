"""PyTorch's side of `cargo xtask bench`: takes steps when asked, and tells how long each took.

A line of input is `WORK IMAGES LAYOUT STEPS`, the answer a JSON array of seconds, one a step; `peak_memory` is answered
with the bytes that this process has had in memory at most. LAYOUT is default, channels_last, compile,
compile+channels_last, compile+graphs or, for evaluation, onnxruntime: the module exported by torch.onnx and computed by
ONNX Runtime. crates/kd-bench is the same for Rust. On a GPU each step ends when the GPU is done, and
f32 is f32, where PyTorch left alone rounds a convolution's factors to TF32. --precision holds for the teacher's answers too.
"""

import argparse
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from networks import ResNet, Student, Teacher

TEMPERATURE, ALPHA = 2.0, 0.75
# Networks for 32 x 32 pixels by kd's names; in a work's name `_step` or `_eval` follows. All others are torchvision's and timm's,
# with the pixels of a side behind the name: `resnet18_224_step`.
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "teacher": Teacher,
    "student": Student,
    **{f"resnet{6 * blocks + 2}": lambda blocks=blocks: ResNet(blocks) for blocks in (1, 3, 9)},
}


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return TEMPERATURE**2 * F.kl_div(
        F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean"
    )


def kd_with_labels(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    # In f32, as autocast has softmax and cross-entropy.
    student, teacher = student.float(), teacher.float()
    return ALPHA * F.cross_entropy(student, labels) + (1 - ALPHA) * kl(student, teacher)


def compiled(what: Callable, layout: str) -> Callable:
    """`what` as the layout has it: compiled, with CUDA graphs ("reduce-overhead"), or as it is."""
    if "graphs" in layout:
        return torch.compile(what, mode="reduce-overhead")
    return torch.compile(what) if "compile" in layout else what


def loss_alone(work: str, layout: str, device: str) -> Callable[[], None]:
    """Forward and backward of the loss of made-up logits: `loss_4096x1000_bf16`."""
    if layout not in ("default", "compile", "compile+graphs"):
        raise ValueError("logits have no layout")
    _, shape, dtype = work.split("_")
    batch, classes = map(int, shape.split("x"))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    student = torch.randn(batch, classes, device=device, dtype=dtype, requires_grad=True)
    teacher = torch.randn(batch, classes, device=device, dtype=dtype)
    labels = torch.arange(batch, device=device) % classes
    loss = compiled(kd_with_labels, layout)

    def step() -> None:
        student.grad = None
        loss(student, teacher, labels).backward()

    return step


def sized(name: str) -> tuple[Callable[[], torch.nn.Module], int]:
    """A network by its name, and the pixels of an image's side."""
    if name in NETWORKS:
        return NETWORKS[name], 32
    network, _, side = name.rpartition("_")
    if not network or not side.isdecimal():
        raise ValueError(f"no network is called {name!r}; one of torchvision's or timm's has its pixels behind the name")
    import families  # needs torchvision and timm, which the tutorial's networks do without

    return lambda: families.module(network, 10), int(side)


def onnxruntime_eval(network: torch.nn.Module, images: Tensor) -> Callable[[], None]:
    """The module's evaluation in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime  # and onnx, which the exporter imports

    class Logits(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits_of(self.network(images))

    wrapped = Logits()
    wrapped.network = network
    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(wrapped.eval(), (images,), file, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images.numpy()}
    expected = logits_of(network(images)).detach().numpy()
    found = session.run(None, given)[0]
    if abs(found - expected).max() > 1e-3 * max(1.0, abs(expected).max()):
        raise ValueError("ONNX Runtime's logits are not PyTorch's")

    return lambda: session.run(None, given)


def logits_of(answer: Tensor | tuple) -> Tensor:
    """This project's modules give their features beside the logits."""
    return answer if isinstance(answer, Tensor) else answer[0]


def prepare(work: str, layout: str, size: int, device: str, precision: str) -> Callable[[], None]:
    if work.startswith("loss_"):
        return loss_alone(work, layout, device)
    with_teacher = work == "kd_step_with_teacher"
    name, _, kind = ("student", "", "step") if work.startswith("kd_step") else work.rpartition("_")
    if kind not in ("step", "eval"):
        raise ValueError(f"no work is called {work!r}")
    make, side = sized(name)
    if layout == "onnxruntime":
        if kind != "eval" or device != "cpu":
            raise ValueError("ONNX Runtime is asked for evaluation on the CPU alone")
        return onnxruntime_eval(make().eval(), torch.randn(size, 3, side, side))
    memory = torch.channels_last if "channels_last" in layout else torch.contiguous_format
    images = torch.randn(size, 3, side, side, device=device).to(memory_format=memory)
    labels = torch.arange(size, device=device) % 10
    teacher_logits = torch.randn(size, 10, device=device)

    def ready(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        return compiled(make().to(device=device, memory_format=memory), layout)

    teacher = ready(make if kind == "eval" else Teacher).eval() if kind == "eval" or with_teacher else None

    mixed = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def answers() -> Tensor:
        with torch.no_grad(), mixed:
            return logits_of(teacher(images)).float()

    if kind == "eval":
        return answers
    network = ready(make).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        soft = answers() if with_teacher else teacher_logits
        with mixed:
            logits = logits_of(network(images)).float()
        loss = F.cross_entropy(logits, labels)
        if work.startswith("kd_step"):
            loss = ALPHA * loss + (1 - ALPHA) * kl(logits, soft)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def answer(line: str, steps: dict, device: str, precision: str) -> object:
    words = line.split()
    if words == ["version"]:
        return torch.__version__
    if words == ["onnxruntime_version"]:
        import onnxruntime

        return onnxruntime.__version__
    if words == ["peak_memory"]:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    work, size, layout, count = words
    if (work, size, layout) not in steps:
        torch.manual_seed(0)
        steps[work, size, layout] = prepare(work, layout, int(size), device, precision)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    wait()
    for _ in range(int(count)):
        start = time.perf_counter()
        steps[work, size, layout]()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("f32", "tf32", "bf16"), default="f32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = args.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = args.precision != "f32"
    # Answers alone are written there: an exporter's messages go to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    steps = {}
    for line in sys.stdin:
        try:
            result = answer(line, steps, args.device, args.precision)
        except Exception as error:  # told to whoever asked, who goes on without this layout
            result = {"error": " ".join(str(error).split())[:300]}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
