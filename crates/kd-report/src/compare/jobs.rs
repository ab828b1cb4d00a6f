//! What has to be trained, and in which order: a run waits for its teacher and for the weights it starts from;
//! others may go on beside it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use kd_record::layout::part_name;

use super::plan::{Planned, PlannedTeacher};

/// A network to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The run's seed.
    pub seed: u64,
    /// The arm's place in the plan.
    pub arm: usize,
    /// The part of the images that the run leaves out (from 1), and how many parts there are.
    pub part: Option<(usize, usize)>,
    /// Jobs that come first, all of them earlier in the list.
    pub after: Vec<usize>,
}

impl Job {
    /// The run's name: the arm's, or that under which kd looks for a teacher that leaves a part of the images out.
    pub fn name(&self, plan: &[Planned]) -> String {
        name(plan, self.arm, self.part)
    }
}

fn name(plan: &[Planned], arm: usize, part: Option<(usize, usize)>) -> String {
    let own = &plan[arm].name;
    part.map_or(own.clone(), |(part, of)| part_name(own, part, of))
}

/// The jobs of all seeds, seed by seed: every arm that is not `recorded`, after those runs whose weights it needs and that are
/// not `at_hand` (both are asked by name and seed).
pub fn jobs(
    plan: &[Planned],
    seeds: u64,
    recorded: impl Fn(&str, u64) -> bool,
    at_hand: impl Fn(&str, u64) -> bool,
) -> Vec<Job> {
    let mut jobs = Vec::new();
    for seed in 0..seeds {
        for arm in 0..plan.len() {
            if !recorded(&plan[arm].name, seed) {
                add(&mut jobs, plan, seed, arm, None, &at_hand);
            }
        }
    }
    jobs
}

/// The place of a job in the list, where it is put if it is new, behind all that it needs.
fn add(
    jobs: &mut Vec<Job>,
    plan: &[Planned],
    seed: u64,
    arm: usize,
    part: Option<(usize, usize)>,
    at_hand: &impl Fn(&str, u64) -> bool,
) -> usize {
    let same = |job: &Job| (job.seed, job.arm, job.part) == (seed, arm, part);
    if let Some(place) = jobs.iter().position(same) {
        return place;
    }
    let named = |name: &String| plan.iter().position(|other| other.name == *name);
    let mut first = Vec::new();
    let teachers = plan[arm].teachers.iter().filter_map(|teacher| match teacher {
        PlannedTeacher::Run(name) => named(name),
        PlannedTeacher::File(_) => None,
    });
    for teacher in teachers {
        match plan[arm].cross_fit {
            None => first.push((teacher, None)),
            Some(of) => first.extend((1..=of).map(|part| (teacher, Some((part, of))))),
        }
    }
    first.extend(plan[arm].init.as_ref().and_then(named).map(|init| (init, None)));
    first.retain(|(arm, part)| !at_hand(&name(plan, *arm, *part), seed));
    let after =
        first.into_iter().map(|(arm, part)| add(jobs, plan, seed, arm, part, at_hand)).collect();
    jobs.push(Job { seed, arm, part, after });
    jobs.len() - 1
}

/// Trains all, `side_by_side` at a time, each as soon as what it waits for is done. After a failure
/// none is begun any more.
///
/// # Errors
/// The first failure.
pub fn run<E: Send>(
    jobs: &[Job],
    side_by_side: usize,
    train: impl Fn(&Job) -> Result<(), E> + Sync,
) -> Result<(), E> {
    struct State<E> {
        waiting: VecDeque<usize>,
        done: Vec<bool>,
        failure: Option<E>,
    }
    let state = Mutex::new(State {
        waiting: (0..jobs.len()).collect(),
        done: vec![false; jobs.len()],
        failure: None,
    });
    let changed = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    // None when nothing is left to begin.
    let next = || {
        let mut state = lock();
        loop {
            if state.failure.is_some() || state.waiting.is_empty() {
                return None;
            }
            let can_begin = |job: &usize| jobs[*job].after.iter().all(|first| state.done[*first]);
            if let Some(place) = state.waiting.iter().position(can_begin) {
                return state.waiting.remove(place);
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    };
    thread::scope(|scope| {
        for _ in 0..side_by_side {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let result = train(&jobs[job]);
                    let mut state = lock();
                    match result {
                        Ok(()) => state.done[job] = true,
                        Err(error) => _ = state.failure.get_or_insert(error),
                    }
                    drop(state);
                    changed.notify_all();
                }
            });
        }
    });
    state.into_inner().unwrap_or_else(PoisonError::into_inner).failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn planned(name: &str, teacher: Option<&str>, cross_fit: Option<usize>) -> Planned {
        Planned {
            init: None,
            name: name.into(),
            recipe: "r.toml".into(),
            run: name.into(),
            teachers: teacher
                .map(|name| PlannedTeacher::Run(name.to_owned()))
                .into_iter()
                .collect(),
            distilled: teacher.is_some(),
            teaches: false,
            cross_fit,
            settings: Value::Null,
            published: None,
        }
    }

    fn plan() -> [Planned; 4] {
        [
            planned("teacher", None, None),
            planned("student", None, None),
            planned("kd", Some("teacher"), None),
            planned("cross", Some("teacher"), Some(2)),
        ]
    }

    fn names(plan: &[Planned], jobs: &[Job]) -> Vec<String> {
        jobs.iter().map(|job| format!("{}/{}", job.name(plan), job.seed)).collect()
    }

    #[test]
    fn what_a_run_learns_from_comes_before_it() {
        let plan = plan();
        let jobs = jobs(&plan, 2, |_, seed| seed == 1, |_, _| false);
        let expected = [
            "teacher/0",
            "student/0",
            "kd/0",
            "teacher-part-1-of-2/0",
            "teacher-part-2-of-2/0",
            "cross/0",
        ];
        assert_eq!(names(&plan, &jobs), expected);
        assert_eq!((&jobs[2].after[..], &jobs[5].after[..]), (&[0][..], &[3, 4][..]));
    }

    #[test]
    fn a_run_waits_for_the_weights_that_it_starts_from() {
        let mut tuned = planned("tuned", Some("teacher"), None);
        tuned.init = Some("student".into());
        let plan = [planned("teacher", None, None), planned("student", None, None), tuned];
        let list = |at_hand: &str| jobs(&plan, 1, |_, _| false, |name, _| name == at_hand);
        assert_eq!(list("none")[2].after, [0, 1]);
        assert_eq!(list("teacher")[2].after, [1]);
    }

    #[test]
    fn a_recorded_teacher_is_trained_again_only_where_its_weights_are_gone_and_wanted() {
        let plan = plan();
        let left = |at_hand: bool| {
            let recorded = |name: &str, _: u64| name != "kd";
            names(&plan, &jobs(&plan, 1, recorded, |name, _| at_hand && name == "teacher"))
        };
        assert_eq!(left(true), ["kd/0"]);
        assert_eq!(left(false), ["teacher/0", "kd/0"]);
        assert!(jobs(&plan, 1, |_, _| true, |_, _| false).is_empty());
    }

    #[test]
    fn nobody_begins_before_what_it_waits_for_and_two_are_on_the_way_at_once() {
        let plan = plan();
        let jobs = jobs(&plan, 3, |_, _| false, |_, _| false);
        let ended = Mutex::new(Vec::new());
        let pair = std::sync::Barrier::new(2);
        run(&jobs, 2, |job| {
            let ended_before = ended.lock().unwrap().clone();
            assert!(job.after.iter().all(|first| ended_before.contains(first)), "{ended_before:?}");
            // The first teacher and the student beside it wait for each other.
            if job.seed == 0 && job.part.is_none() && job.after.is_empty() {
                pair.wait();
            }
            ended.lock().unwrap().push(jobs.iter().position(|other| other == job).unwrap());
            Ok::<(), String>(())
        })
        .unwrap();
        assert_eq!(ended.into_inner().unwrap().len(), jobs.len());
    }

    #[test]
    fn after_a_failure_nothing_is_begun() {
        let plan = plan();
        let jobs = jobs(&plan, 2, |_, _| false, |_, _| false);
        for side_by_side in [1, 3] {
            let begun = Mutex::new(0);
            let result = run(&jobs, side_by_side, |job| {
                *begun.lock().unwrap() += 1;
                if job.arm == 0 { Err("no teacher") } else { Ok(()) }
            });
            assert_eq!(result.unwrap_err(), "no teacher");
            // The teachers fail; a student may have been on its way.
            assert!(begun.into_inner().unwrap() < jobs.len() / 2);
        }
    }
}
