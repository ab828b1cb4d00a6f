//! What `cargo xtask bench` can measure.

/// What can be measured, in the order of the table. A network's step or evaluation is a work that workers know by its name.
pub(super) const WORKS: [Work; 18] = [
    Work { name: "teacher_step", kind: Measure::Time { images: 128 } },
    Work { name: "student_step", kind: Measure::Time { images: 128 } },
    Work { name: "teacher_eval", kind: Measure::Time { images: 128 } },
    Work { name: "distill_10_epochs", kind: Measure::Distill },
    Work { name: "teacher_peak_memory", kind: Measure::Memory { of: "teacher_step", images: 128 } },
    Work { name: "resnet20_step", kind: Measure::Time { images: 128 } },
    Work { name: "resnet56_step", kind: Measure::Time { images: 128 } },
    Work { name: "resnet20_eval", kind: Measure::Time { images: 128 } },
    Work {
        name: "resnet20_peak_memory",
        kind: Measure::Memory { of: "resnet20_step", images: 128 },
    },
    Work {
        name: "resnet56_peak_memory",
        kind: Measure::Memory { of: "resnet56_step", images: 128 },
    },
    // Pictures of 224 x 224 pixels.
    Work { name: "resnet18_224_step", kind: Measure::Time { images: 32 } },
    Work { name: "mobilenet_v2_224_step", kind: Measure::Time { images: 32 } },
    Work { name: "efficientnet_lite0_224_eval", kind: Measure::Time { images: 32 } },
    Work {
        name: "resnet18_peak_memory",
        kind: Measure::Memory { of: "resnet18_224_step", images: 32 },
    },
    Work {
        name: "mobilenet_v2_peak_memory",
        kind: Measure::Memory { of: "mobilenet_v2_224_step", images: 32 },
    },
    Work {
        name: "efficientnet_lite0_peak_memory",
        kind: Measure::Memory { of: "efficientnet_lite0_224_step", images: 32 },
    },
    // 50,000 images in CIFAR-10's files, and the synthetic set's 10,000, which are drawn.
    Work { name: "first_step", kind: Measure::FirstStep { dataset: "cifar10" } },
    Work { name: "first_step_synthetic", kind: Measure::FirstStep { dataset: "synthetic" } },
];

#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) kind: Measure,
}

#[derive(Clone, Copy)]
pub(super) enum Measure {
    /// The time of a step or evaluation of so many images.
    Time { images: u64 },
    /// The tutorial's distillation of ten epochs, put together from [`DISTILL`].
    Distill,
    /// The time from the start of a process to the first step of the tutorial's student.
    FirstStep { dataset: &'static str },
    /// The memory of a process that takes such steps and nothing else.
    Memory { of: &'static str, images: u64 },
}

/// The works that ten epochs of distillation are put together from, of 128 images each.
pub(super) const DISTILL: [&str; 3] = ["teacher_eval", "kd_step", "kd_step_with_teacher"];
/// Images of [`DISTILL`]'s steps and of losses alone.
pub(super) const IMAGES_OF_A_STEP: u64 = 128;

/// The work that has this name.
pub(super) fn work(name: &str) -> Result<Work, String> {
    let known = || WORKS.map(|work| work.name).join(", ");
    let found = WORKS.into_iter().find(|work| work.name == name);
    found.ok_or_else(|| format!("no work is called {name:?}; there are {}", known()))
}
/// Of labels and soft targets alone, forward and backward; on a CPU they would take minutes.
pub(super) const LOSSES: [&str; 6] = [
    "loss_128x10_f32",
    "loss_4096x1000_f32",
    "loss_4096x32000_f32",
    "loss_128x10_bf16",
    "loss_4096x1000_bf16",
    "loss_4096x32000_bf16",
];

/// Whether a work is one of the tutorial's networks'.
pub(super) fn is_tutorials(work: &str) -> bool {
    ["teacher_", "student_", "kd_"].iter().any(|network| work.starts_with(network))
}

/// The steps and evaluations that `works` are put together from, each once, with the images of each.
pub(super) fn timed(works: &[Work], images: Option<u64>) -> Vec<(&'static str, u64)> {
    let mut timed = Vec::new();
    for work in works {
        match work.kind {
            Measure::Time { images: own } => timed.push((work.name, images.unwrap_or(own))),
            Measure::Distill => {
                timed.extend(DISTILL.map(|name| (name, images.unwrap_or(IMAGES_OF_A_STEP))));
            }
            Measure::Memory { .. } | Measure::FirstStep { .. } => {}
        }
    }
    let mut seen = Vec::new();
    timed.retain(|(name, _)| {
        let new = !seen.contains(name);
        seen.push(*name);
        new
    });
    timed
}
