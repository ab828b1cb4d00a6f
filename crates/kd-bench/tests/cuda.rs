//! The worker on a GPU. Where there is none the test is reported as ignored.

use std::io::Write;
use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Trial};

fn main() {
    let no_gpu = candle_core::Device::new_cuda(0).is_err();
    let test = || {
        every_layout_takes_steps();
        Ok(())
    };
    let trial = Trial::test("every_layout_takes_steps", test).with_ignored_flag(no_gpu);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Also after others have taken and freed memory: a graph finds what it uses.
fn every_layout_takes_steps() {
    for precision in ["f32", "bf16"] {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_kd-bench"))
            .args(["--side", "ours", "--device", "cuda"])
            .args(["--precision", precision])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = [
            "student_step 2 graph 2",
            "kd_step 2 graph 2",
            "student_step 2 default 2",
            "kd_step_with_teacher 2 graph 2",
            "loss_8x10_bf16 2 default 2",
            "student_step 2 graph 2",
        ];
        let mut input = worker.stdin.take().unwrap();
        writeln!(input, "{}", lines.join("\n")).unwrap();
        drop(input);
        let output = worker.wait_with_output().unwrap();
        let answers = String::from_utf8(output.stdout).unwrap();
        let answers: Vec<Vec<f64>> =
            answers.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert!(output.status.success() && answers.len() == lines.len(), "{answers:?}");
        assert!(answers.iter().all(|seconds| seconds.len() == 2), "{answers:?}");
    }
}
