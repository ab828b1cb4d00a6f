//! What stands below the flags in `--help` and on the manual pages.

pub(super) const KD: &str = "\
Examples:
  kd train --model teacher --out runs/mine                 train on CIFAR-10 in data/
  kd distill --method kd --out runs/mine                   train a student with its help
  kd predict --weights runs/mine/kd.safetensors cat.jpg    ask it
  kd report runs/mine                                      a table, and report.html
  kd train --help                                          flags and examples of a command

Exit codes:
  0    done
  1    failed; standard error says why
  2    the command line can't be right
  3    done in part: some of the files asked for could not be read
  130  stopped by Ctrl-C, 143 by a signal to end, as shells report it

Environment:
  RUST_LOG           what is logged to standard error [default: warn]; such as debug, or kd_run=info
  NO_COLOR           if set, no colours
  RAYON_NUM_THREADS  threads to compute with, where --threads is not given";

pub(super) const TRAIN: &str = "\
Examples:
  kd train --model teacher --data data --out runs/mine
  kd train --model student --dataset synthetic --epochs 3 --out runs/quick
  kd train --model student --dataset folder --data pictures --out runs/pictures
  kd train --recipe mine.toml --run student --seed 1

Pictures of one's own lie in DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (PNG or JPEG of any size).
The same command again goes on where it stopped.";

pub(super) const DISTILL: &str = "\
Examples:
  kd distill --method kd --out runs/mine                   the teacher is runs/mine/teacher.safetensors
  kd distill --method kd --temperature 4 --alpha 0.5 --teacher teacher.safetensors
  kd distill --recipe recipes/methods/dkd.toml --run dkd --out runs/dkd

`kd methods` lists the methods. The same command again goes on where it stopped.";

pub(super) const EVAL: &str = "\
Examples:
  kd eval --weights runs/mine/kd.safetensors
  kd eval --weights runs/mine/kd.safetensors --json | jq .accuracy
  kd eval --weights pytorch.safetensors --model student --logits logits.safetensors";

pub(super) const PREDICT: &str = "\
Examples:
  kd predict --weights runs/mine/kd.safetensors cat.jpg dog.png
  kd predict --weights runs/mine/kd.safetensors --teacher runs/mine/teacher.safetensors pictures/
  kd predict --weights runs/mine/kd.safetensors --json pictures/ | jq -r '.images[] | [.path, .class] | @tsv'

A picture is turned upright as its EXIF data says; the largest square in its middle is scaled to 32x32; grey becomes
colour, 16 bits become 8, and transparent parts lie on white. The confidence is the softmax, which is
not calibrated. A file that can't be read is named on standard error, the others are answered, and the exit code is 3.";

pub(super) const EXPORT: &str = "\
Examples:
  kd export --weights runs/mine/kd.safetensors --onnx student.onnx
  kd export --weights runs/mine/kd.safetensors --onnx student.onnx --int8

The graph's input is `images` [batch, 3, 32, 32], red, green, blue, any batch size; its output is `logits` [batch, classes].
The classes' names are a JSON array in the metadata entry `classes`.";

pub(super) const REPORT: &str = "\
Examples:
  kd report runs/mine
  kd report runs/seed-0 runs/seed-1 runs/seed-2";

pub(super) const RECIPE: &str = "\
Examples:
  kd recipe > mine.toml
  kd recipe mine.toml
  kd recipe mine.toml --json | jq .training";

pub(super) const COMPLETIONS: &str = "\
Examples:
  kd completions bash > ~/.local/share/bash-completion/completions/kd
  kd completions zsh > ~/.zfunc/_kd
  kd completions fish > ~/.config/fish/completions/kd.fish";

pub(super) const MAN: &str = "\
Examples:
  kd man | man -l -
  kd man --out ~/.local/share/man/man1";
