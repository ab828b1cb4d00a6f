//! What makes `kd` at home in a shell.

use std::process::Command;

use crate::workdir::WorkDir;

#[test]
fn help_shows_examples_and_exit_codes() {
    let dir = WorkDir::new();
    let help = dir.stdout("--help");
    for expected in ["Examples:", "Exit codes:", "RUST_LOG", "NO_COLOR"] {
        assert!(help.contains(expected), "{help}");
    }
    for command in ["train", "distill", "eval", "predict", "export", "report", "recipe", "man"] {
        let help = dir.stdout(&format!("{command} --help"));
        assert!(help.contains(&format!("Examples:\n  kd {command} ")), "{help}");
    }
}

#[test]
fn completions_name_the_commands_and_bash_can_read_them() {
    let dir = WorkDir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = dir.stdout(&format!("completions {shell}"));
        assert!(script.contains("distill") && script.contains("teacher-model"), "{shell}");
        if shell == "bash" {
            std::fs::write(dir.path("kd.bash"), &script).unwrap();
        }
    }
    // What bash offers behind `kd pre` and `kd train --see`.
    let script = r#". ./kd.bash; offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kd kd "${!#}" "${@: -2:1}"; echo "${COMPREPLY[@]}"; }; offer kd pre; offer kd train --see"#;
    match Command::new("bash").args(["-c", script]).current_dir(dir.path("")).output() {
        Ok(output) => assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "prepare predict\n--seed\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => eprintln!("skipped: no bash here ({error})"),
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let dir = WorkDir::new();
    let page = dir.stdout("man");
    assert!(page.contains(".TH kd 1") && page.contains("Exit codes:"), "{page}");
    dir.stdout("man --out man1");
    let page = String::from_utf8(dir.read("man1/kd-predict.1")).unwrap();
    assert!(page.contains(".TH kd-predict 1") && page.contains("teacher"), "{page}");
    assert_eq!(dir.read("man1/kd.1"), dir.stdout("man").into_bytes());
}

#[test]
fn the_environment_says_what_is_logged() {
    let dir = WorkDir::new();
    let mut command = dir.command("methods");
    let output = command.env("RUST_LOG", "no=such=level").output().unwrap();
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.starts_with("warning: RUST_LOG is \"no=such=level\""), "{errors}");
}
