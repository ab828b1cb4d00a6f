//! The source's figures, to stand beside ours on CIFAR-10.

/// Accuracies in per cent of one of the tutorial's runs.
pub(crate) struct SourceFigures {
    /// What the lecture printed, if it has this run.
    pub(crate) lecture: Option<&'static str>,
    /// What two releases of the tutorial's page recorded, one seed each.
    pub(crate) tutorial: &'static str,
}

/// The source's figures for the run of that name; the lecture leaves out the feature methods.
pub(crate) fn figures(run: &str) -> Option<SourceFigures> {
    let (lecture, tutorial) = match run {
        "teacher" => (Some("73"), "75.1, 75.6"),
        "student" => (Some("66"), "69.9, 70.4"),
        "kd" => (Some("66"), "70.8, 70.2"),
        "cosine" => (None, "71.5, 70.9"),
        "regressor" => (None, "70.8, 71.4"),
        _ => return None,
    };
    Some(SourceFigures { lecture, tutorial })
}
