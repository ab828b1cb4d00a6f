//! The library resolves a run as the command does, and says what went wrong by its type.

use kd_models::Architecture;
use kd_run::Error;
use kd_run::recipe::{DatasetName, Recipe, TUTORIAL};
use kd_run::resolve::{Choices, resolve};

use crate::workdir::{WorkDir, weights};

/// What [`TINY`](crate::workdir::TINY) says on the command line.
fn tiny(dir: &WorkDir) -> Choices {
    Choices {
        dataset: Some(DatasetName::Synthetic),
        train_limit: Some(100),
        test_limit: Some(40),
        epochs: Some(2),
        batch_size: Some(16),
        out: Some(dir.path("library")),
        ..Choices::default()
    }
}

#[test]
fn choices_resolve_to_the_recipe_that_the_command_records_for_the_same_flags() {
    let dir = WorkDir::new();
    let recipe = Recipe::parse(TUTORIAL, "the built-in recipe").unwrap();
    weights(&dir.path("first.safetensors"), Architecture::TUTORIAL_STUDENT, 100, 3, true);
    dir.train(
        "train --model student --part 2/3 --lr 0.002 --clip-grad-norm 5 --seed 7 --held-out 20 --freeze features.0 --init first.safetensors --out command",
    );
    let choices = Choices {
        model: Some(Architecture::TUTORIAL_STUDENT),
        part: Some([2, 3]),
        lr: Some(0.002),
        clip_grad_norm: Some(5.0),
        seed: Some(7),
        held_out: Some(20),
        freeze: Some(vec!["features.0".into()]),
        init: Some(dir.path("first.safetensors")),
        ..tiny(&dir)
    };
    let resolved = resolve(&recipe, recipe.run("student").unwrap(), &choices).unwrap();
    let recorded = dir.read("command/student-part-2-of-3/recipe.toml");
    assert_eq!(resolved.run.recipe.to_toml().unwrap(), String::from_utf8(recorded).unwrap());
    let [note] = &resolved.notes[..] else { panic!("{:?}", resolved.notes) };
    assert!(note.contains("classifies 100 classes; the data has 10"), "{note}");

    dir.teacher("command/teacher.safetensors", 10, 5);
    let line = "distill --method kd --temperature 4 --alpha 0.5 --name mine --out command";
    dir.train(&format!("{line} --held-out 20"));
    let choices = Choices {
        temperature: Some(4.0),
        alpha: Some(0.5),
        name: Some("mine".into()),
        held_out: Some(20),
        out: Some(dir.path("command")),
        ..tiny(&dir)
    };
    let resolved = resolve(&recipe, recipe.run("kd").unwrap(), &choices).unwrap();
    let recorded = dir.read("command/mine/recipe.toml");
    assert_eq!(resolved.run.recipe.to_toml().unwrap(), String::from_utf8(recorded).unwrap());
    // The teacher's file names no classes.
    let [note] = &resolved.notes[..] else { panic!("{:?}", resolved.notes) };
    assert!(note.contains("does not name its classes; its 10 classes are taken"), "{note}");
}

#[test]
fn what_went_wrong_is_told_by_its_type() {
    let dir = WorkDir::new();
    let recipe = Recipe::parse(TUTORIAL, "the built-in recipe").unwrap();
    let error = |run: &str, choices: Choices| {
        resolve(&recipe, recipe.run(run).unwrap(), &choices).err().expect("it must fail")
    };
    assert_eq!(
        recipe.run("studnet").unwrap_err().known,
        ["teacher", "student", "kd", "cosine", "regressor"]
    );
    for (run, choices) in [
        ("student", Choices { temperature: Some(4.0), ..tiny(&dir) }),
        ("student", Choices { alpha: Some(0.5), ..tiny(&dir) }),
        ("student", Choices { name: Some("../up".into()), ..tiny(&dir) }),
        ("student", Choices { teacher: vec!["teacher.safetensors".into()], ..tiny(&dir) }),
    ] {
        let error = error(run, choices);
        assert!(matches!(error, Error::Choice(_)), "{error:?}");
    }
    assert!(!dir.path("library").exists(), "nothing is written before the choices make sense");

    weights(&dir.path("hundred.safetensors"), Architecture::TUTORIAL_TEACHER, 100, 3, true);
    let teacher = vec![dir.path("hundred.safetensors")];
    let fits_not = error("kd", Choices { teacher, ..tiny(&dir) });
    assert!(matches!(fits_not, Error::DoesNotFit(_)), "{fits_not:?}");
    let missing = error("kd", Choices { teacher: vec!["nowhere".into()], ..tiny(&dir) });
    assert!(matches!(missing, Error::Other(_)), "{missing:?}");
}
