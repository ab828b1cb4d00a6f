//! What the machine's cores can do at most, to judge a computation by: multiply-adds, and bytes to and from memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// The most that all of rayon's threads together reached in a second, in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Multiplications, each with an addition, on numbers that stay in registers.
    pub multiply_adds: f64,
    /// Bytes read and bytes written together, in copies of memory that no cache holds.
    pub bytes: f64,
}

/// Measures for about `time` in all, on all of rayon's threads at once. The best of many short measurements counts: what else
/// the machine does makes each of them slower and none faster.
pub fn peaks(time: Duration) -> Peaks {
    let threads = rayon::current_num_threads();
    let clock = Instant::now();
    let now = || clock.elapsed();
    let multiply_adds = best(time / 2, now, || multiply_adds() as f64);
    // Larger than the caches that a thread may have for itself.
    const COPIED: usize = 64 << 20;
    let mut memory: Vec<[Vec<u8>; 2]> =
        (0..threads).into_par_iter().map(|_| [vec![1; COPIED], vec![2; COPIED]]).collect();
    let bytes = best(time / 2, now, || {
        memory.par_iter_mut().for_each(|[from, to]| black_box(to).copy_from_slice(black_box(from)));
        (2 * threads * COPIED) as f64
    });
    Peaks { multiply_adds, bytes }
}

/// Takes some multiply-adds on each of rayon's threads with nothing read from memory; how many there were.
pub fn multiply_adds() -> u64 {
    let threads = rayon::current_num_threads();
    let sum: f32 = (0..threads).into_par_iter().map(|_| on_a_thread(black_box(0.999))).sum();
    black_box(sum);
    (threads * MULTIPLY_ADDS) as u64
}

/// The highest rate that `work`, which gives how much it did, reaches in some calls, of which the first is not counted, by the clock `now`.
fn best(time: Duration, now: impl Fn() -> Duration, mut work: impl FnMut() -> f64) -> f64 {
    work();
    let begin = now();
    let mut best = 0.0;
    while best == 0.0 || now() - begin < time {
        let start = now();
        let done = work();
        best = f64::max(best, done / (now() - start).as_secs_f64().max(1e-9));
    }
    best
}

/// Multiply-adds of a thread, a few milliseconds.
const MULTIPLY_ADDS: usize = (CHAINS * 16) << 18;
/// Independent chains, which hide the latency of a multiply-add.
const CHAINS: usize = 12;

/// Multiply-adds on one thread, on the widest vectors that the processor has.
fn on_a_thread(factor: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the feature.
            return unsafe { with_avx512(factor) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the features.
            return unsafe { with_avx2(factor) };
        }
    }
    // Without the feature `mul_add` would call a function of the C library, number by number.
    chains::<4, { cfg!(not(target_arch = "x86_64")) }>(factor)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512(factor: f32) -> f32 {
    chains::<16, true>(factor)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(factor: f32) -> f32 {
    chains::<8, true>(factor)
}

/// [`MULTIPLY_ADDS`] of them on vectors of so many numbers, each in one instruction where they are `FUSED`.
#[inline(always)]
fn chains<const LANES: usize, const FUSED: bool>(factor: f32) -> f32 {
    let mut chains = [[1.0f32; LANES]; CHAINS];
    for _ in 0..MULTIPLY_ADDS / (CHAINS * LANES) {
        for chain in &mut chains {
            for value in chain {
                *value = if FUSED { value.mul_add(factor, 0.5) } else { *value * factor + 0.5 };
            }
        }
    }
    chains.iter().flatten().sum()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A rate is work by time, of the fastest call, without the first.
    #[test]
    fn the_fastest_call_counts() {
        // A clock that the work itself moves: a busy machine's sleeps are longer than they are asked to be.
        let clock = Cell::new(Duration::ZERO);
        let mut takes = [5, 40, 20, 40].into_iter();
        let rate = best(
            Duration::from_millis(90),
            || clock.get(),
            || {
                clock.set(clock.get() + Duration::from_millis(takes.next().unwrap()));
                1.0
            },
        );
        assert!((rate - 50.0).abs() < 1e-9, "{rate} a second");
        assert_eq!(takes.next(), None, "the time is not up before");
    }

    /// A processor of this century; wrong units would be off by a thousand.
    #[test]
    fn peaks_are_of_a_processors_size() {
        // Again where the process was held up for seconds.
        let measured: Vec<Peaks> = (0..5).map(|_| peaks(Duration::from_millis(10))).collect();
        let largest = |of: fn(&Peaks) -> f64| measured.iter().map(of).fold(0.0, f64::max);
        let (multiply_adds, bytes) = (largest(|p| p.multiply_adds), largest(|p| p.bytes));
        assert!((1e7..1e14).contains(&multiply_adds), "{multiply_adds}");
        assert!((1e7..1e13).contains(&bytes), "{bytes}");
    }
}
