//! Logits of augmented views that are kept: a student that reads them ends as one that asks the teacher, bit for bit.

use std::ops::ControlFlow;

use kd_models::Architecture;
use kd_run::train::{Outcome, Progress, train};

use crate::resume::{assert_same, resolved};
use crate::workdir::{BATCHES, WorkDir, weights};

/// A student that is taught by `teacher` on mixed pictures of two views each, with this line in its run.
fn recipe(teacher: &str, line: &str) -> String {
    format!(
        "format = 1\nname = 'r'\ndata = {{ augment = {{ crop_padding = 4, flip = true, mixup = 0.5, cutmix = 1.0, views = 2 }} }}\n
[[run]]\nname = 'taught'\nmodel = 'student'\nteacher = '{teacher}'\nlabels = 0.1\n{line}\n[[run.method]]\nname = 'kd'\nweight = 1.0\n"
    )
}

/// The folder's one file of kept views.
fn file(dir: &WorkDir, out: &str) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir.path(&format!("{out}/cache"))).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "views"));
    assert_eq!(paths.len(), 1, "{paths:?}");
    paths.remove(0)
}

const LINE: &str = "distill --recipe r.toml --run taught --epochs 3 --out";
const KEEP: &str = "keep --recipe r.toml --run taught --epochs 3 --device cpu --out";

#[test]
fn a_student_that_reads_kept_views_ends_as_one_that_asks_its_teacher() {
    for (teacher, architecture) in [("t.safetensors", "student"), ("r.safetensors", "resnet8")] {
        let dir = WorkDir::new();
        let network = architecture.parse::<Architecture>().unwrap();
        weights(&dir.path(teacher), network, 10, 5, true);
        let flags = "--dataset synthetic --train-limit 40 --test-limit 40 --batch-size 16";
        let (line, keep) = (format!("{LINE} OUT {flags}"), format!("{KEEP} OUT {flags}"));
        let kd = |line: &str, out: &str| dir.command(&line.replace("OUT", out)).output().unwrap();
        std::fs::write(dir.path("r.toml"), recipe(teacher, "")).unwrap();
        assert!(kd(&line, "asked").status.success());
        std::fs::write(dir.path("r.toml"), recipe(teacher, "keep = { type = 'f32' }")).unwrap();

        // On the way.
        let said = String::from_utf8(kd(&line, "way").stderr).unwrap();
        assert!(said.contains("40 images in 2 views, 44 bytes a row, 0.0 MiB in "), "{said}");
        assert!(said.contains("0 of 80 rows are there"), "{said}");
        // The first view is asked for before the first step, too, for how good the teacher is; the third epoch shows it again.
        assert!(said.contains("80 of 160 rows were read from the file"), "{said}");
        // Ahead; a row of which half was written, as by a process that was killed, is made again.
        let made = String::from_utf8(kd(&keep, "ahead").stdout).unwrap();
        assert!(made.contains("80 rows are there for this run, 80 of them computed now"), "{made}");
        let path = file(&dir, "ahead");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096 + 44 * 50 + 20..][..24].fill(0);
        std::fs::write(&path, bytes).unwrap();
        let made = String::from_utf8(kd(&keep, "ahead").stdout).unwrap();
        assert!(made.contains("79 of 80 rows are there"), "{made}");
        assert!(made.contains("80 rows are there for this run, 1 of them computed now"), "{made}");
        let said = String::from_utf8(kd(&line, "ahead").stderr).unwrap();
        assert!(said.contains("160 of 160 rows were read from the file (100.0 %)"), "{said}");

        let student = dir.read("asked/taught.safetensors");
        for out in ["way", "ahead"] {
            assert!(
                student == dir.read(&format!("{out}/taught.safetensors")),
                "{architecture} {out}"
            );
        }
        // A row that holds another number is found.
        let check = format!("{keep} --check 30");
        let output = kd(&check, "ahead");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("rows computed again, 3")
                && said.contains("largest difference of a logit 0.00e0"),
            "{said}"
        );
        let forged = kd_record::Keep::default().encode(&[0.5; 10]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for row in 0..80 {
            bytes[4096 + 44 * row..][..44].copy_from_slice(&forged);
        }
        std::fs::write(&path, bytes).unwrap();
        let output = kd(&check, "ahead");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("are not those that the teacher gives now: delete the file"),
            "{said}"
        );
    }
}

#[test]
fn a_student_of_kept_halves_ends_the_same_wherever_it_stops() {
    let dir = WorkDir::new();
    dir.teacher("t.safetensors", 10, 5);
    std::fs::write(dir.path("r.toml"), recipe("t.safetensors", "keep = { type = 'f16', top = 3 }"))
        .unwrap();
    let line = "distill --recipe r.toml --run taught --out";
    dir.train(&format!("{line} whole"));
    let run = resolved(&dir, "whole/taught", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step, .. } if step == BATCHES as u64 + 2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { .. })));
    let said = dir.train(&format!("{line} stopped"));
    assert!(said.contains("100 images in 2 views, 18 bytes a row"), "{said}");
    assert_same(&dir, "whole", "stopped", "taught");
}

#[test]
fn what_can_not_be_kept_is_refused_with_the_reason() {
    let dir = WorkDir::new();
    dir.teacher("t.safetensors", 10, 5);
    let keep = "keep = { type = 'f32' }";
    let refused = |text: String, code| {
        std::fs::write(dir.path("r.toml"), text).unwrap();
        dir.train_fails("distill --recipe r.toml --run taught --out out", code)
    };
    let good = recipe("t.safetensors", keep);
    for (from, to, expected) in [
        (", views = 2", "", "run[1].keep: is set; expected data.augment.views beside it"),
        (
            "augment = { crop_padding = 4, flip = true, mixup = 0.5, cutmix = 1.0, views = 2 }",
            "",
            "run[1].keep: is set; expected none without augmentation",
        ),
        (
            "name = 'kd'",
            "name = 'cosine'",
            "expected none beside the method cosine: it learns from feature maps",
        ),
        ("{ type = 'f32' }", "{ top = 0 }", "run[1].keep.top: is 0"),
        ("{ type = 'f32' }", "{ type = 'f8' }", "unknown variant `f8`"),
        ("{ type = 'f32' }", "{ top = 10 }", "keep.top is 10 and there are 10 classes"),
    ] {
        assert!(good.contains(from));
        let message = refused(good.replace(from, to), 1);
        assert!(message.contains(expected), "{message}");
    }
    let without = recipe("t.safetensors", "");
    std::fs::write(dir.path("r.toml"), without).unwrap();
    let message = dir.train_fails("keep --recipe r.toml --run taught --device cpu --out out", 2);
    assert!(
        message.contains("run \"taught\" keeps no views: its recipe has no line `keep`"),
        "{message}"
    );
}
