//! Made-up output folders in the formats that `kd` writes.

use std::path::Path;

use serde_json::{Value, json};

pub(super) const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// One made-up run. The counts of right answers decide the accuracy.
#[derive(Clone)]
pub(super) struct FakeRun {
    pub(super) name: String,
    pub(super) model: &'static str,
    pub(super) method: Option<&'static str>,
    pub(super) seed: u64,
    /// Right answers per class.
    pub(super) right: Vec<u32>,
    pub(super) images_per_class: u32,
    pub(super) classes: Vec<String>,
    pub(super) epochs: usize,
    pub(super) dataset: Value,
    /// What the start event records of teacher and methods; version 0.1 recorded nothing.
    pub(super) roles: Option<Value>,
}

pub(super) fn dataset(name: &str) -> Value {
    json!({"name": name, "train": 50_000, "test": 10_000, "sha256": "5e".repeat(32)})
}

impl FakeRun {
    /// A run on ten classes of 1000 test images, each class with about the given accuracy.
    pub(super) fn new(name: &str, right: u32) -> FakeRun {
        let scatter = [40, 110, -120, -190, -50, -110, 80, 50, 110, 80];
        let right = scatter.iter().map(|s| right.strict_add_signed(*s)).collect();
        let (model, method) = match name {
            "teacher" => ("teacher", None),
            "student" => ("student", None),
            "cosine" => ("student", Some("cosine")),
            "regressor" => ("student", Some("regressor")),
            _ => ("student", Some("kd")),
        };
        FakeRun {
            name: name.to_owned(),
            model,
            method,
            seed: 0,
            right,
            images_per_class: 1000,
            classes: CLASSES.map(str::to_owned).to_vec(),
            epochs: 10,
            dataset: dataset("cifar10"),
            roles: None,
        }
    }

    pub(super) fn accuracy(&self) -> f64 {
        let right: u32 = self.right.iter().sum();
        f64::from(right) / (f64::from(self.images_per_class) * self.right.len() as f64)
    }

    /// The run folder's files and the weights beside it.
    pub(super) fn write(&self, above: &Path) {
        let folder = above.join(&self.name);
        std::fs::create_dir_all(folder.join("checkpoints")).unwrap();
        std::fs::write(folder.join("recipe.toml"), self.recipe()).unwrap();
        std::fs::write(folder.join("events.jsonl"), self.events()).unwrap();
        let evaluation = serde_json::to_string(&self.evaluation()).unwrap();
        std::fs::write(folder.join("evaluation.json"), evaluation).unwrap();
        let weights = above.join(format!("{}.safetensors", self.name));
        std::fs::write(weights, vec![0; self.parameters() / 100]).unwrap();
    }

    /// What it says of each test image, in the order of the classes: 4 for its answer, 1 for the next
    /// class, else 0; the answers are the confusion matrix's. Rows of logits and labels.
    pub(super) fn answers(&self) -> (Vec<Vec<f32>>, Vec<u8>) {
        let evaluation = self.evaluation();
        let classes = self.classes.len();
        let (mut logits, mut labels) = (Vec::new(), Vec::new());
        for truth in 0..classes {
            for answer in 0..classes {
                for _ in 0..evaluation["confusion"][truth][answer].as_u64().unwrap() {
                    let mut row = vec![0.0; classes];
                    row[(answer + 1) % classes] = 1.0;
                    row[answer] = 4.0;
                    logits.push(row);
                    labels.push(truth as u8);
                }
            }
        }
        (logits, labels)
    }

    /// [`write`](Self::write), and the outputs; weights and teacher are known by their names.
    pub(super) fn write_with_outputs(&self, above: &Path) {
        use safetensors::tensor::{Dtype, TensorView};
        self.write(above);
        let folder = above.join(&self.name);
        let recipe = std::fs::read_to_string(folder.join("recipe.toml")).unwrap();
        let named = "teacher_sha256 = \"teacher\"\nlabels = 0.75";
        std::fs::write(folder.join("recipe.toml"), recipe.replace("labels = 0.75", named)).unwrap();
        let (logits, labels) = self.answers();
        let shape = vec![logits.len(), self.classes.len()];
        let logits: Vec<u8> = logits.concat().iter().flat_map(|v| v.to_le_bytes()).collect();
        // Every third image, all of one grey.
        let sample: Vec<u32> = (0..labels.len() as u32).step_by(3).collect();
        let pixels = vec![128; sample.len() * 3 * 4];
        let indices: Vec<u8> = sample.iter().flat_map(|index| index.to_le_bytes()).collect();
        let view = |dtype, shape, data| TensorView::new(dtype, shape, data).unwrap();
        let tensors = [
            ("logits", view(Dtype::F32, shape, &logits)),
            ("labels", view(Dtype::U8, vec![labels.len()], &labels)),
            ("sample", view(Dtype::U32, vec![sample.len()], &indices)),
            ("sample_images", view(Dtype::U8, vec![sample.len(), 3, 2, 2], &pixels)),
        ];
        let metadata = [("weights-sha256".to_owned(), self.name.clone())].into();
        let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
        std::fs::write(folder.join("test-outputs.safetensors"), bytes).unwrap();
    }

    pub(super) fn parameters(&self) -> usize {
        if self.model == "teacher" { 1_186_986 } else { 267_738 }
    }

    fn recipe(&self) -> String {
        let (model, seed, epochs) = (self.model, self.seed, self.epochs);
        let mut text = format!(
            "format = 1\nname = \"tutorial\"\n\n[data]\ndataset = {}\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\n[training]\nepochs = {epochs}\nbatch_size = 128\nseed = {seed}\n\n[optimizer]\nname = \"adam\"\nlr = 0.001\nbeta1 = 0.9\nbeta2 = 0.999\neps = 1e-8\nweight_decay = 0.0\n\n[[run]]\nname = {}\nmodel = \"{model}\"\n",
            self.dataset["name"],
            Value::from(self.name.clone()),
        );
        if let Some(method) = self.method {
            text.push_str("teacher = \"../teacher.safetensors\"\nlabels = 0.75\n");
            text.push_str(&format!("\n[[run.method]]\nname = \"{method}\"\nweight = 0.25\n"));
            if method == "kd" {
                text.push_str("temperature = 2.0\n");
            }
        }
        text
    }

    fn events(&self) -> String {
        let mut lines = vec![json!({
            "event": "start", "run": self.name, "model": self.model, "method": self.method,
            "parameters": self.parameters(),
            "multiply_adds": if self.model == "teacher" { 93_600_000 } else { 1_300_000 },
            "device": "cpu", "threads": 2, "machine": "2 cores", "version": "0.1.0",
            "seed": self.seed, "dataset": self.dataset,
        })];
        if let Some(roles) = &self.roles {
            lines[0]["roles"] = roles.clone();
        }
        for epoch in 1..=self.epochs {
            lines.push(self.epoch(epoch));
            lines.push(json!({"event": "step", "epoch": epoch, "step": epoch * 391, "loss": 1.0}));
        }
        lines.push(json!({"event": "end", "steps": self.epochs * 391}));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Rises to the last epoch's accuracy; later losses overfit a little.
    pub(super) fn epoch(&self, epoch: usize) -> Value {
        let done = epoch as f64 / self.epochs as f64;
        let wobble = (epoch as f64 * 2.4 + self.seed as f64 + self.name.len() as f64).sin() * 0.006;
        let accuracy = if epoch == self.epochs {
            self.accuracy()
        } else {
            self.accuracy() * (1.0 - 0.32 * (-4.0 * done).exp()) + wobble
        };
        let deep = if self.model == "teacher" { 1.28 } else { 0.85 };
        let train_loss = 1.45 - deep * done.powf(0.7) + wobble;
        let mut event = json!({
            "event": "epoch", "epoch": epoch,
            "train_loss": train_loss, "train_accuracy": 0.99 - train_loss / 3.0,
            "test_loss": 1.2 - 0.33 * done.sqrt() + if self.model == "teacher" { 0.35 * done * done } else { 0.0 } + wobble,
            "test_accuracy": accuracy,
            "seconds": if self.model == "teacher" { 80.0 } else { 12.5 },
            "images_per_second": if self.model == "teacher" { 625.0 } else { 4000.0 },
        });
        if let Some(method) = self.method {
            event["parts"] = json!({"labels": train_loss * 1.05, method: train_loss * 0.6 + 0.1});
        }
        event
    }

    /// Mistakes go to the next classes, the nearest most.
    pub(super) fn evaluation(&self) -> Value {
        let count = self.right.len();
        let mut confusion = vec![vec![0u32; count]; count];
        for (class, right) in self.right.iter().enumerate() {
            confusion[class][class] = *right;
            let mut left = self.images_per_class - right;
            for away in 1..count {
                let share = if away == count - 1 { left } else { left / 2 };
                confusion[class][(class + 2 * away + away / 5) % count] += share;
                left -= share;
            }
        }
        for (class, row) in confusion.iter_mut().enumerate() {
            // Keep the diagonal what it was said to be.
            let extra = row[class] - self.right[class];
            row[class] -= extra;
            row[(class + 1) % count] += extra;
        }
        let per_class: Vec<f64> = self
            .right
            .iter()
            .map(|right| f64::from(*right) / f64::from(self.images_per_class))
            .collect();
        json!({
            "format": 1, "accuracy": self.accuracy(), "loss": self.epoch(10)["test_loss"], "classes": self.classes,
            "confusion": confusion, "per_class_accuracy": per_class,
        })
    }
}

/// The tutorial's five runs.
pub(super) fn tutorial(seed: u64, dataset: &Value) -> Vec<FakeRun> {
    let runs = [
        ("teacher", 731, [7, -3, 4]),
        ("student", 688, [-4, 5, 1]),
        ("kd", 694, [3, 1, -6]),
        ("cosine", 692, [-9, 4, 8]),
        ("regressor", 679, [6, -2, 3]),
    ];
    let run = |(name, right, scatter): (&str, u32, [i32; 3])| {
        let moved = right.strict_add_signed(scatter[seed as usize % 3]);
        let mut run = FakeRun::new(name, moved);
        run.seed = seed;
        run.dataset = dataset.clone();
        for (class, right) in run.right.iter_mut().enumerate() {
            *right = right.strict_add_signed(((class * 7 + name.len() * 3) % 11) as i32 * 3 - 15);
        }
        run
    };
    runs.into_iter().map(run).collect()
}
