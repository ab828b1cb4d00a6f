//! The library's errors that a caller can act on.

use std::ops::ControlFlow;
use std::path::Path;

use kd_models::Architecture;
use kd_run::Error;
use kd_run::recipe::{DatasetName, Recipe, TUTORIAL};
use kd_run::resolve::{Choices, Resolved, resolve};
use kd_run::train::{Outcome, train};

use crate::workdir::{WorkDir, weights};

/// The tutorial's student on a few images, with these choices.
fn student(out: &Path, choices: Choices) -> Result<Resolved, Error> {
    let recipe = Recipe::parse(TUTORIAL, "the built-in recipe").unwrap();
    let choices = Choices {
        out: Some(out.to_owned()),
        dataset: Some(DatasetName::Synthetic),
        train_limit: Some(40),
        test_limit: Some(20),
        epochs: Some(2),
        batch_size: Some(16),
        ..choices
    };
    resolve(&recipe, recipe.run("student").unwrap(), &choices)
}

/// What training ends with.
fn outcome(out: &Path, choices: Choices) -> Result<Outcome, Error> {
    train(&student(out, choices)?.run, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn a_folder_that_is_in_use_or_holds_another_run() {
    let dir = WorkDir::new();
    let out = dir.path("out");
    assert!(matches!(outcome(&out, Choices::default()), Ok(Outcome::Finished(_))));
    assert!(matches!(outcome(&out, Choices::default()), Ok(Outcome::AlreadyFinished(_))));
    match outcome(&out, Choices { seed: Some(5), ..Choices::default() }) {
        Err(Error::AnotherRecipe { path, what, differences }) => {
            assert_eq!((path, what), (out.join("student/recipe.toml"), "folder"));
            assert_eq!(differences, "training.seed (0 there, 5 asked for)");
        }
        other => panic!("{other:?}"),
    }
    let lock = kd_record::lock::try_lock(&out.join("student")).unwrap();
    match outcome(&out, Choices::default()) {
        Err(Error::FolderInUse { folder }) => assert_eq!(folder, out.join("student")),
        other => panic!("{other:?}"),
    }
    drop(lock);
    assert!(outcome(&out, Choices::default()).is_ok());
}

#[test]
fn a_number_that_is_not_finite() {
    let dir = WorkDir::new();
    let out = dir.path("out");
    match outcome(&out, Choices { lr: Some(1e30), ..Choices::default() }) {
        Err(Error::NotFinite { run, epoch, step, found, images, checkpoints }) => {
            assert_eq!((run.as_str(), epoch, step, images.len()), ("student", 1, 2, 16));
            assert!(found.contains("is NaN") || found.contains("is inf"), "{found}");
            assert_eq!(checkpoints, out.join("student/checkpoints"));
        }
        other => panic!("{other:?}"),
    }
    // That of the fresh weights alone.
    assert_eq!(dir.checkpoints("out/student").len(), 1);
}

#[test]
fn weights_and_choices_that_do_not_fit() {
    let dir = WorkDir::new();
    let path = dir.path("teacher.safetensors");
    weights(&path, Architecture::RESNET8, 10, 5, true);
    let out = dir.path("out");
    match student(&out, Choices { init: Some(path.clone()), ..Choices::default() }).err() {
        Some(Error::DoesNotFit(error)) => {
            let message = format!("{error:#}");
            assert!(message.contains("teacher.safetensors"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    match student(&out, Choices { teacher: vec![path], ..Choices::default() }).err() {
        Some(Error::Choice(message)) => assert!(message.contains("needs no teacher"), "{message}"),
        other => panic!("{other:?}"),
    }
}
