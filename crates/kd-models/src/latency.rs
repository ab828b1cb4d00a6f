//! How long a network's forward pass takes on the CPU.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::{Classifier, GraphNetwork, Result};

/// Passes before those that are timed: the first makes the plan and asks for memory.
const BEFORE: usize = 2;
/// Fewer passes than this give no 90th percentile.
const FEWEST: usize = 10;
/// No more passes than this are timed.
const MOST: usize = 1000;

/// The times of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// How many passes were timed.
    pub timed: usize,
    /// The median of their times.
    pub median: Duration,
    /// Nine of ten took at most this long.
    pub p90: Duration,
}

/// Times the network's evaluation of a batch of `batch` images, with the threads of the rayon pool that it is called in
/// (`ThreadPool::install`), for about as long as `budget`, but at least ten times. Where single images are timed,
/// [`GraphNetwork::prepared`] lays the weights out once, as a program does that keeps the network.
///
/// # Errors
/// When a layer can't be computed.
pub fn latency(network: &GraphNetwork, batch: usize, budget: Duration) -> Result<Latency> {
    let [channels, height, width] = network.graph().input();
    let shape = (batch, channels, height, width);
    // Values as normalised images have them; what they are changes no time.
    let count = batch * channels * height * width;
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    let images = Tensor::from_vec(values, shape, &Device::Cpu)?;
    for _ in 0..BEFORE {
        network.evaluate(&images, &[])?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < FEWEST || (start.elapsed() < budget && times.len() < MOST) {
        let begin = Instant::now();
        network.evaluate(&images, &[])?;
        times.push(begin.elapsed());
    }
    Ok(of(times))
}

/// The median, of an even number the mean of the middle two, and the smallest time that nine of ten don't exceed.
fn of(mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let count = times.len();
    let median = (times[(count - 1) / 2] + times[count / 2]) / 2;
    Latency { timed: count, median, p90: times[(count * 9).div_ceil(10) - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelConfig, init, var_builder};

    #[test]
    fn the_median_and_the_ninetieth_percentile_are_those_of_the_sorted_times() {
        let of = |numbers: &[u64]| {
            of(numbers.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>())
        };
        let found = of(&[9, 1, 8, 2, 7, 3, 6, 4, 5, 10]);
        let expected = Latency {
            timed: 10,
            median: Duration::from_micros(5500),
            p90: Duration::from_millis(9),
        };
        assert_eq!(found, expected);
        // Of eleven, nine are fewer than nine tenths.
        let found = of(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!((found.median.as_millis(), found.p90.as_millis()), (6, 10));
    }

    #[test]
    fn a_network_is_timed_at_least_ten_times() {
        let config = ModelConfig::new("student".parse().unwrap(), 10);
        let weights = init(&config, 0, &Device::Cpu).unwrap();
        let graph = config.graph().unwrap();
        let network = GraphNetwork::new(graph, var_builder(&weights)).unwrap().prepared();
        let found = latency(&network, 2, Duration::ZERO).unwrap();
        assert_eq!(found.timed, FEWEST);
        assert!(Duration::ZERO < found.median && found.median <= found.p90, "{found:?}");
    }
}
