//! Threads that take the part of processes which share a batch.

use std::sync::{Arc, Condvar, Mutex};

use kd_models::{BlockSums, Sums};

/// What one thread leaves for the next.
#[derive(Default)]
struct Passed {
    /// Whose turn it is; behind the last thread's all read.
    turn: usize,
    /// How many have read what the last one left.
    readers: usize,
    /// f32 lies in f64 as it is.
    sums: Vec<f64>,
    /// Calls so far.
    calls: usize,
}

/// One of several threads that share a batch.
pub(crate) struct Rank {
    rank: usize,
    ranks: usize,
    passed: Arc<(Mutex<Passed>, Condvar)>,
}

impl Rank {
    pub(crate) fn all(ranks: usize) -> Vec<Arc<Self>> {
        let passed = Arc::<(Mutex<Passed>, Condvar)>::default();
        (0..ranks).map(|rank| Arc::new(Self { rank, ranks, passed: passed.clone() })).collect()
    }

    /// How often sums have gone round.
    pub(crate) fn calls(&self) -> usize {
        self.passed.0.lock().unwrap().calls
    }
}

fn read(sums: &mut Sums<'_>, from: &[f64]) {
    match sums {
        Sums::F32(to) => {
            assert_eq!(to.len(), from.len());
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from as f32);
        }
        Sums::F64(to) => to.copy_from_slice(from),
    }
}

fn again<'a>(sums: &'a mut Sums<'_>) -> Sums<'a> {
    match sums {
        Sums::F32(sums) => Sums::F32(sums),
        Sums::F64(sums) => Sums::F64(sums),
    }
}

impl BlockSums for Rank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn in_turn(
        &self,
        mut sums: Sums<'_>,
        add: &mut dyn FnMut(Sums<'_>),
    ) -> candle_core::Result<()> {
        let (passed, changed) = &*self.passed;
        let mut now = changed
            .wait_while(passed.lock().unwrap(), |passed| {
                passed.turn != self.rank || passed.readers > 0
            })
            .unwrap();
        if self.rank > 0 {
            read(&mut sums, &now.sums);
        }
        add(again(&mut sums));
        now.sums = match &sums {
            Sums::F32(sums) => sums.iter().map(|&sum| f64::from(sum)).collect(),
            Sums::F64(sums) => sums.to_vec(),
        };
        now.turn += 1;
        changed.notify_all();
        let mut now = changed.wait_while(now, |passed| passed.turn < self.ranks).unwrap();
        read(&mut sums, &now.sums);
        now.readers += 1;
        if now.readers == self.ranks {
            now.calls += 1;
            (now.readers, now.turn) = (0, 0);
            changed.notify_all();
        }
        Ok(())
    }
}
