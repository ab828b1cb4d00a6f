use kd_models::Architecture;

use super::check::check_schedule;
use super::parse::line_of;
use super::*;

fn error(text: &str) -> String {
    Recipe::parse(text, "r.toml").unwrap_err().to_string()
}

fn changed(from: &str, to: &str) -> String {
    assert!(TUTORIAL.contains(from), "{from}");
    error(&TUTORIAL.replacen(from, to, 1))
}

fn line(of: &str) -> usize {
    line_of(TUTORIAL, TUTORIAL.find(of).unwrap())
}

#[test]
fn the_built_in_recipe_is_the_tutorials() {
    let recipe = Recipe::parse(TUTORIAL, "tutorial").unwrap();
    assert_eq!(recipe.data, DataConfig::default());
    assert_eq!(recipe.training, TrainingConfig::default());
    assert_eq!(recipe.optimizer, OptimizerConfig::default());
    let names: Vec<_> = recipe.runs.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(names, ["teacher", "student", "kd", "cosine", "regressor"]);
    assert!(recipe.runs.iter().all(|run| run.dropout == Some(0.1)));
    assert_eq!(recipe.runs[0].labels, 1.0);
    assert_eq!((recipe.runs[2].labels, recipe.runs[2].methods[0].weight), (0.75, 0.25));
}

#[test]
fn a_resolved_recipe_reads_back_the_same() {
    let recipe = Recipe::parse(TUTORIAL, "tutorial").unwrap();
    for run in &recipe.runs {
        let one = RunRecipe {
            name: recipe.name.clone(),
            data: recipe.data.clone(),
            training: recipe.training.clone(),
            optimizer: recipe.optimizer.clone(),
            run: run.clone(),
        };
        let again = Recipe::parse(&one.to_toml().unwrap(), "again").unwrap();
        assert_eq!(again.runs, std::slice::from_ref(run));
        assert_eq!(again.data, one.data);
        assert_eq!(again.optimizer, one.optimizer);
    }
}

#[test]
fn an_optimiser_has_its_own_settings_alone() {
    let adam =
        "name = \"adam\"\nlr = 1e-3\nbeta1 = 0.9\nbeta2 = 0.999\neps = 1e-8\nweight_decay = 0.0";
    let with = |table: &str| TUTORIAL.replacen(adam, table, 1);
    let sgd = with("name = 'sgd'\nlr = 0.1\nmomentum = 0.9\nnesterov = true");
    let recipe = Recipe::parse(&sgd, "r").unwrap();
    let expected =
        "name = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nnesterov = true\nweight_decay = 0.0\n";
    assert_eq!(toml::to_string(&recipe.optimizer).unwrap(), expected);
    let adam = toml::to_string(&OptimizerConfig::default()).unwrap();
    assert_eq!(
        adam,
        "name = \"adam\"\nlr = 0.001\nbeta1 = 0.9\nbeta2 = 0.999\neps = 0.00000001\nweight_decay = 0.0\n"
    );
    for (table, expected) in [
        ("momentum = 0.9", "optimizer.momentum is a setting of sgd; this one has lr, beta1"),
        ("name = 'sgd'\nbeta1 = 0.9", "optimizer.beta1 is a setting of adam; this one has lr, mom"),
        ("name = 'sgd'\nnesterov = true", "optimizer.nesterov: is true; expected false without"),
        ("name = 'sgd'\nmomentum = 1.0", "optimizer.momentum: is 1; expected a number from 0"),
        ("name = 'sgd'\nmomentun = 0.9", "did you mean `momentum`?"),
    ] {
        let message = error(&with(table));
        let line = line("[optimizer]");
        let found = message.strip_prefix("r.toml, line ").and_then(|rest| rest.split_once(':'));
        let (found, _) = found.unwrap_or_else(|| panic!("{message}"));
        assert!((line..line + 3).contains(&found.parse().unwrap()), "{message}, {line}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_schedule_is_a_line_and_a_mistake_in_it_is_named() {
    let with = |line: &str| {
        TUTORIAL.replacen("epochs = 10", &format!("epochs = 10\nschedule = {line}"), 1)
    };
    let recipe = Recipe::parse(&with("{ name = 'cosine', warmup_epochs = 2 }"), "r").unwrap();
    let text = toml::to_string(&recipe).unwrap();
    assert_eq!(Recipe::parse(&text, "again").unwrap(), recipe, "{text}");
    assert!(!toml::to_string(&Recipe::parse(TUTORIAL, "r").unwrap()).unwrap().contains("schedule"));
    let at = line("epochs = 10") + 1;
    for (line, expected) in [
        (
            "{ name = 'cosine', warmup_epochs = -1 }",
            "training.schedule.warmup_epochs: is -1; expected",
        ),
        ("{ name = 'cosin' }", "did you mean `cosine`?"),
        ("{ name = 'cosine', downto = 1 }", "unknown field `downto`"),
    ] {
        let message = error(&with(line));
        assert!(message.starts_with(&format!("r.toml, line {at}: ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_resnet_has_no_dropout() {
    let resnet = TUTORIAL.replacen("model = \"teacher\"", "model = \"resnet20\"", 1);
    let recipe = Recipe::parse(&resnet, "r").unwrap();
    assert_eq!((recipe.runs[0].dropout, recipe.runs[1].dropout), (None, Some(0.1)));
    let mut run = recipe.runs[1].clone();
    run.set_model(Architecture::RESNET20);
    assert_eq!(run.dropout, None);
    run.set_model(Architecture::TUTORIAL_TEACHER);
    assert_eq!(run.dropout, Some(0.1));
    let message = error(&resnet.replacen("\"resnet20\"", "\"resnet20\"\ndropout = 0.1", 1));
    assert!(message.contains("a ResNet has no dropout"), "{message}");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
    let message = changed("epochs = 10", "epoch = 10");
    let line = line("epochs = 10");
    assert!(
        message.starts_with(&format!("r.toml, line {line}: unknown field `epoch`")),
        "{message}"
    );
    assert!(message.ends_with("did you mean `epochs`?"), "{message}");
    let message = changed("temperature = 2.0", "temprature = 2.0");
    assert!(message.contains("did you mean `temperature`?"), "{message}");
}

#[test]
fn wrong_types_and_names_are_named_with_their_line() {
    let message = changed("batch_size = 128", "batch_size = \"many\"");
    assert!(message.contains(&format!("line {}", line("batch_size"))), "{message}");
    assert!(message.contains("expected a whole number, not negative"), "{message}");
    let message = changed("lr = 1e-3", "lr = \"small\"");
    assert!(message.ends_with("invalid type: string \"small\", expected a number"), "{message}");
    let message = changed("flip = false", "flip = 3");
    assert!(message.contains("expected a boolean"), "{message}");
    let message = changed("std = [0.229, ", "std = [");
    assert!(message.contains(&format!("line {}", line("std = ["))), "{message}");
    assert!(message.contains("expected an array of length 3"), "{message}");
    let message = changed("name = \"teacher\"\nmodel = \"teacher\"", "name = \"teacher\"");
    assert!(message.contains("missing field `model`"), "{message}");
    let message = changed("model = \"teacher\"", "model = \"teachr\"");
    assert!(message.contains("did you mean `teacher`?"), "{message}");
    let message = changed("epochs = 10", "precision = \"fp16\"");
    assert!(message.contains("expected one of `f32`, `tf32`, `bf16`"), "{message}");
    let message = changed("name = \"cosine\"\nweight", "name = \"cosin\"\nweight");
    assert!(message.contains("did you mean `cosine`?"), "{message}");
}

#[test]
fn impossible_values_are_named_with_their_line() {
    let values = [
        ("epochs = 10", "epochs = 0", "training.epochs: is 0; expected at least 1"),
        ("epochs = 10", "epochs = 1000001", "expected at least 1, at most 1000000"),
        ("model = \"teacher\"", "epochs = 0\nmodel = \"teacher\"", "run[1].epochs: is 0"),
        ("seed = 0", "clip_grad_norm = -1.0", "training.clip_grad_norm: is -1"),
        ("seed = 0", "clip_grad_norm = inf", "training.clip_grad_norm: is inf"),
        ("crop_padding = 0", "crop_padding = 40", "data.augment.crop_padding: is 40"),
        ("lr = 1e-3", "lr = -1.0", "optimizer.lr: is -1"),
        ("beta2 = 0.999", "beta2 = 1.0", "optimizer.beta2"),
        ("temperature = 2.0", "temperature = 0.0", "temperature is 0"),
        ("labels = 0.75", "labels = -0.5", "run[3].labels"),
        ("weight = 0.25", "weight = nan", "run[3].method[1].weight"),
        ("std = [0.229", "std = [0.0", "data.std"),
        ("name = \"student\"", "name = \"../x\"", "run[2].name"),
        ("name = \"student\"", "name = \"teacher\"", "is the name of two runs"),
    ];
    for (from, to, expected) in values {
        let message = changed(from, to);
        assert!(message.contains(expected), "{message}");
        // A method's own options are found by their table.
        let line = if from.starts_with("temperature") { line(from) - 3 } else { line(from) };
        assert!(message.contains(&format!("line {line}:")), "{line}: {message}");
    }
}

#[test]
fn another_format_says_what_to_do() {
    let message = changed("format = 1", "format = 7");
    assert!(
        message.contains("line 4: format is 7; this version of kd reads format 1"),
        "{message}"
    );
    assert!(error("name = \"x\"").contains("format is missing"));
}

#[test]
fn differing_keys_are_named_with_both_values() {
    let there: toml::Table = TUTORIAL.parse().unwrap();
    let text = TUTORIAL.replace("epochs = 10", "epochs = 20").replace("lr = 1e-3\n", "");
    let differing = differences(&there, &text.parse().unwrap());
    assert_eq!(
        differing,
        [
            "optimizer.lr (0.001 there, not set asked for)",
            "training.epochs (10 there, 20 asked for)"
        ]
    );
    assert!(differences(&there, &there).is_empty());
}

#[test]
fn rates_that_make_no_sense_are_errors() {
    let read = |line: &str| {
        let table: toml::Table = format!("schedule = {line}").parse().unwrap();
        table["schedule"].clone().try_into::<LrSchedule>()
    };
    for (line, key) in [
        ("{ name = 'step', milestones = [3, 2] }", "milestones"),
        ("{ name = 'step', milestones = [], factor = 0 }", "factor"),
        ("{ name = 'cosine', warmup_epochs = -1 }", "warmup_epochs"),
        ("{ name = 'cosine', down_to = 2 }", "down_to"),
        ("{ name = 'constant', warmup_from = -1 }", "warmup_from"),
        ("{ name = 'one-cycle', rise = 1 }", "rise"),
    ] {
        let message = check_schedule(&read(line).unwrap()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{key}: is ")), "{message}");
    }
    assert!(read("{ name = 'one-cycle', warmup_epochs = 1 }").is_err());
    for line in [
        "{ name = 'constant', warmup_epochs = 1.5, warmup_from = 0.1 }",
        "{ name = 'step', milestones = [3, 5], warmup_epochs = 2 }",
        "{ name = 'cosine', down_to = 0.05, warmup_epochs = 2 }",
        "{ name = 'one-cycle', rise = 0.4, div_factor = 10, final_div_factor = 100, anneal = 'linear' }",
    ] {
        assert!(check_schedule(&read(line).unwrap()).is_ok(), "{line}");
    }
}

/// The softmax of a teacher's logits at temperature T has the power 1/T of its probabilities.
#[test]
fn teachers_are_combined_at_the_temperature_of_the_method() {
    let combination = |method: &str| {
        let text = format!(
            "format = 1\nname = 'r'\n[[run]]\nname = 'a'\nmodel = 'student'\nteacher = ['b', 'c']\ncombine = {{ name = 'probabilities' }}\n[[run.method]]\nweight = 1.0\nname = {method}"
        );
        Recipe::parse(&text, "r").unwrap().runs[0].combination()
    };
    for (method, expected) in [
        ("'ttm'\ngamma = 0.25", 4.0),
        ("'wttm'\ngamma = 0.5", 2.0),
        ("'mlkd'\ntemperatures = [3.0]", 3.0),
        ("'kd'\ntemperature = 2.0\nteacher_temperature = 1.5", 1.5),
    ] {
        let mut found = combination(method).unwrap();
        assert_eq!(found.temperature_mut().copied(), Some(Some(expected)), "{method}");
    }
    let error = combination("'mlkd'").unwrap_err().message;
    assert!(error.contains("several temperatures"), "{error}");
}
