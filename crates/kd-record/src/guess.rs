//! What version 0.1 did not record of a run's roles, guessed from names as that version's report did; nobody else guesses.

use std::borrow::Cow;

use crate::event::Start;
use crate::roles::{MethodRole, Roles};

impl Start {
    /// What the run learns from, as recorded, or for a run of version 0.1 as guessed from the methods' names.
    pub fn roles(&self) -> Cow<'_, Roles> {
        match &self.roles {
            Some(roles) => Cow::Borrowed(roles),
            None => Cow::Owned(guessed_roles(self)),
        }
    }
}

/// Whether a run of version 0.1 is to be taken for a teacher by its name.
pub fn named_as_teacher(start: &Start) -> bool {
    start.run == "teacher"
}

/// The place of the teacher among runs none of which records one, as version 0.1's report found it: the first that learns from
/// the labels alone and whose name or network is called "teacher".
pub fn guessed_teacher<'a>(starts: impl IntoIterator<Item = &'a Start>) -> Option<usize> {
    starts.into_iter().position(|start| {
        start.roles().methods.is_empty() && (named_as_teacher(start) || start.model == "teacher")
    })
}

/// What version 0.1 let one guess: every method but label smoothing asks a teacher, whoever that is.
fn guessed_roles(start: &Start) -> Roles {
    let names = start.method.iter().flat_map(|names| names.split('+'));
    let methods = names.map(|name| MethodRole {
        name: name.to_owned(),
        weight: None,
        asks_teacher: name != "label-smoothing",
    });
    Roles {
        labels: None,
        methods: methods.collect(),
        teacher: None,
        further_teachers: Vec::new(),
        init: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(run: &str, model: &str, method: Option<&str>) -> Start {
        let mut start: Start = serde_json::from_str(
            r#"{"run":"","model":"","parameters":1,"device":"cpu","seed":0,
                "dataset":{"name":"synthetic","train":1,"test":1,"sha256":""}}"#,
        )
        .unwrap();
        (start.run, start.model, start.method) =
            (run.into(), model.into(), method.map(str::to_owned));
        start
    }

    #[test]
    fn version_0_1_lets_methods_and_teacher_be_guessed_from_names() {
        let runs = [
            start("kd", "teacher", Some("kd+attention-transfer")),
            start("smooth", "student", Some("label-smoothing")),
            start("big", "resnet56", None),
            start("teacher", "resnet20", None),
        ];
        let roles: Vec<_> = runs.iter().map(|start| start.roles().into_owned()).collect();
        let names: Vec<_> = roles[0].methods.iter().map(|method| method.name.as_str()).collect();
        assert_eq!(names, ["kd", "attention-transfer"]);
        assert!(roles[0].is_taught() && !roles[1].is_taught() && !roles[2].is_taught());
        assert_eq!(guessed_teacher(&runs), Some(3));
        assert_eq!(guessed_teacher(&runs[..3]), None);
    }

    #[test]
    fn what_is_recorded_is_not_guessed() {
        let mut recorded = start("kd", "student", Some("label-smoothing"));
        let json = r#"{"labels":0.5,"methods":[{"name":"kd","weight":0.25,"asks_teacher":true}],
            "teacher":{"file":"../big.safetensors","run":"big","sha256":"ab"}}"#;
        recorded.roles = Some(serde_json::from_str(json).unwrap());
        let roles = recorded.roles();
        assert!(roles.is_taught() && roles.init.is_none());
        assert_eq!(roles.teacher.as_ref().unwrap().run.as_deref(), Some("big"));
        let text = serde_json::to_string(&recorded).unwrap();
        assert_eq!(serde_json::from_str::<Start>(&text).unwrap(), recorded);
    }
}
