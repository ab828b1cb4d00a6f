//! docs/cifar100.md: the published pairs, what was published of them, and what kd has.

use std::fmt::Write;

use super::table::{Method, Pair, Table};

/// What the page shows where kd has no figure.
const NOT_RUN: &str = "not run";

pub(super) fn text(table: &Table) -> String {
    let mut text = String::from(INTRODUCTION);
    let mut add = |part: &str| text += part;
    let (one_kind, two_kinds): (Vec<&Pair>, Vec<&Pair>) =
        table.pairs.iter().partition(|pair| pair.is_of_one_kind());
    add("## Published, and kd's\n\n");
    add(LEGEND);
    add("Teacher and student of one kind:\n\n");
    add(&figures(table, &one_kind));
    add("\nOf two kinds:\n\n");
    add(&figures(table, &two_kinds));
    add("\n## Networks\n\n");
    add(&networks(table));
    add("\n## Settings, and where kd departs from them\n\n");
    add(&protocol(table));
    add("\n| method | run | settings, and whose | kd |\n| --- | --- | --- | --- |\n");
    for method in &table.methods {
        add(&settings(method));
    }
    text
}

const INTRODUCTION: &str = "\
# The published pairs on CIFAR-100

<!-- Written by `cargo xtask pairs` from recipes/cifar100/pairs.toml: change that, not this. -->

Papers on distillation since 2020 compare their methods on thirteen pairs of teacher and student, trained on CIFAR-100 in the protocol of RepDistiller. `recipes/cifar100/` has a recipe for each: the teacher, the
student on the labels alone, and the student by every method of kd that has settings of its authors for CIFAR-100. **kd's own figures are missing**: each says \"not run\". What is tested is that each recipe names places that its
networks have and that shapes fit (`cargo test`). `cargo xtask soak pairs` takes a training step of each run on files in CIFAR-100's format; it has not been run to its end yet.

```
cargo xtask data --dataset cifar100                                                   # 161 MB
kd plan recipes/cifar100/resnet56-to-resnet20.toml                                    # what each run takes on this machine
kd compare recipes/cifar100/resnet56-to-resnet20.toml --arms kd,crd --seeds 3         # two methods and the teacher; the same command goes on
kd compare recipes/cifar100/wrn-40-2-to-*.toml --arms dkd,wrn-40-2-to-wrn-16-2-dkd     # of several pairs, whose common teacher is trained once
kd distill --recipe recipes/cifar100/resnet56-to-resnet20.toml --run kd --out runs/pair \\
    --teacher resnet56_vanilla/ckpt_epoch_240.pth --teacher-model resnet56_b --teacher-mean 0.5071,0.4867,0.4408 --teacher-std 0.2675,0.2565,0.2761
```

The last line takes a teacher's checkpoint of RepDistiller or mdistiller as it is. `kd compare` and the report show the published figure in a column of its own, beside kd's last epoch, which is the figure that counts, and beside the best epoch on
the test images, which is chosen on the images that it is measured on. Arms that were not run are rows that say so.

";

const LEGEND: &str = "\
Accuracy on the test images in per cent, published / kd's. `*`: the best epoch on the test images, by the code that gave it. `°`: neither the source nor the code says which epoch. All others: the last epoch. The figures of the labels alone and of the methods
down to CRD are RepDistiller's (`README.md`, \"from the last epoch\" by its `train_student.py`), also where others wrote the method; each recipe names the source of each figure.

";

/// Methods as rows, pairs as columns.
fn figures(table: &Table, pairs: &[&Pair]) -> String {
    let title = |id: &str| table.network(id).map_or(id, |network| &network.title).to_owned();
    let mut rows = vec![vec![String::new()], vec!["---".to_owned()]];
    for pair in pairs {
        rows[0].push(format!(
            "[{} → {}](../recipes/cifar100/{}.toml)",
            title(&pair.teacher),
            title(&pair.student),
            pair.name()
        ));
        rows[1].push("---:".into());
    }
    let epoch = table.alone.epoch.as_deref();
    let alone = |what: &str, ids: Vec<&String>| -> Vec<String> {
        let networks = ids.into_iter().filter_map(|id| table.network(id).ok());
        let cells = networks.map(|found| cell(Some((found.alone, epoch)), found.ours.as_deref()));
        std::iter::once(what.to_owned()).chain(cells).collect()
    };
    rows.push(alone("teacher", pairs.iter().map(|pair| &pair.teacher).collect()));
    rows.push(alone("student alone", pairs.iter().map(|pair| &pair.student).collect()));
    for method in &table.methods {
        let mut row = vec![method.title.clone()];
        for pair in pairs {
            let name = pair.name();
            let published =
                method.published_of(&name).map(|(accuracy, _, epoch)| (accuracy, epoch));
            row.push(cell(published, method.ours.get(&name).map(String::as_str)));
        }
        rows.push(row);
    }
    rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect()
}

fn cell(published: Option<(f64, Option<&str>)>, ours: Option<&str>) -> String {
    let published = published.map_or_else(
        || "-".to_owned(),
        |(accuracy, epoch)| {
            let mark = match epoch {
                Some("last") => "",
                Some(_) => "*",
                None => "°",
            };
            format!("{accuracy:.2}{mark}")
        },
    );
    format!("{published} / {}", ours.unwrap_or(NOT_RUN))
}

fn networks(table: &Table) -> String {
    let mut text = String::from(
        "| network | kd's name | learning rate | stages | before their ReLU |\n| --- | --- | ---: | --- | --- |\n",
    );
    for network in &table.networks {
        let _ = writeln!(
            text,
            "| {} | `{}` | {} | {} | {} |",
            network.title,
            network.model,
            network.lr,
            network.stages.join(", "),
            network.before_relu.join(", ")
        );
    }
    text
}

fn protocol(table: &Table) -> String {
    let protocol = &table.protocol;
    let milestones: Vec<String> = protocol.milestones.iter().map(usize::to_string).collect();
    format!(
        "The protocol of {}: {} epochs of batches of {}, SGD with momentum {} (not Nesterov's), weight decay {} on every parameter, the learning rate times {} after epochs {}; shifts by up to {} pixels with black around the picture, mirroring; mean {:?}, deviation {:?}. \
Where a method's authors train otherwise, the table says so.\n\nFor all methods: the order of the pictures and all draws are kd's own; convolutions of the small ResNets start normal by their fan-in, where RepDistiller takes the fan-out; methods with layers of their own train them at the student's rate and weight decay, as \
RepDistiller does; published figures are means of three to five runs, mostly of one and the same teacher, where `kd compare` trains a teacher for each seed.\n",
        protocol.source,
        protocol.epochs,
        protocol.batch_size,
        protocol.momentum,
        protocol.weight_decay,
        protocol.factor,
        milestones.join(", "),
        protocol.crop_padding,
        protocol.mean,
        protocol.std
    )
}

fn settings(method: &Method) -> String {
    let term = |term: &toml::Table| {
        let name = term.get("name").and_then(toml::Value::as_str).unwrap_or_default();
        let options = term.iter().filter(|(key, _)| *key != "name");
        let options: Vec<String> = options.map(|(key, value)| format!("{key} = {value}")).collect();
        format!("`{name}`: {}", options.join(", "))
    };
    let mut said: Vec<String> = method.terms.iter().map(term).collect();
    if let Some(labels) = method.labels {
        said.push(format!("labels {labels}"));
    }
    if let Some(lr) = method.lr {
        said.push(format!("lr {lr}"));
    }
    if let Some(epochs) = method.first {
        said.push(format!("{epochs} epochs with it alone, then the labels alone"));
    }
    if !method.settings.is_empty() {
        said.push("single pairs have other numbers".into());
    }
    let differs = match &*method.differs {
        "" => "as theirs",
        differs => differs,
    };
    format!(
        "| {} | `{}` | {}. {} | {differs} |\n",
        method.title,
        method.name,
        said.join("; "),
        method.source
    )
}
