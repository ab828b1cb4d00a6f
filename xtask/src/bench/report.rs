//! What was measured, as rows, in JSON and as tables.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::contestant::Side;
use super::work::{LOSSES, Measure, Work};

/// Images of CIFAR-10's training set, and epochs of the tutorial.
pub(super) const IMAGES: u64 = 50_000;
const EPOCHS: f64 = 10.0;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) threads: u64,
    pub(super) batch_size: u64,
    pub(super) precision: &'static str,
    pub(super) processor: String,
    pub(super) versions: BTreeMap<&'static str, String>,
    /// Of the CPU, where that is what was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peaks: Option<Peaks>,
    pub(super) results: Vec<Row>,
}

/// What all threads together reach in a second.
#[derive(Serialize, Clone, Copy)]
pub(super) struct Peaks {
    /// Multiplications, each with an addition, of numbers in registers.
    pub(super) multiply_adds: f64,
    /// Bytes read and written by copies.
    pub(super) bytes: f64,
}

impl Peaks {
    /// The higher ones of two measurements.
    pub(super) fn or_higher(self, other: Self) -> Self {
        Self {
            multiply_adds: self.multiply_adds.max(other.multiply_adds),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

/// The least that a step or evaluation of ours has to do.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    /// Multiply-adds of convolutions and linear layers done directly.
    pub(super) multiply_adds: f64,
    /// Bytes through memory, where they are known.
    pub(super) bytes: Option<f64>,
}

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) times: Times,
    pub(super) memory: Memory,
    pub(super) costs: BTreeMap<&'static str, Cost>,
    /// Images of a step or evaluation.
    pub(super) images: BTreeMap<&'static str, u64>,
}

/// Seconds of every measured step.
pub(super) type Times = BTreeMap<(&'static str, Side, &'static str), Vec<f64>>;

/// The most memory that a process had which did nothing but a work: bytes, by that work's name.
pub(super) type Memory = BTreeMap<(&'static str, Side, &'static str), u64>;

/// One line of the results: seconds or bytes, lower is better.
#[derive(Serialize, Debug, PartialEq)]
pub(super) struct Row {
    work: &'static str,
    /// The best of our layouts; elsewhere than on a GPU there is one.
    ours: Option<f64>,
    candle: Option<f64>,
    /// The best of PyTorch's layouts, and which that is.
    pytorch: Option<f64>,
    pytorch_layout: Option<&'static str>,
    unit: &'static str,
    /// `pytorch / ours`.
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    onnxruntime: Option<f64>,
    /// `onnxruntime / ours`.
    #[serde(skip_serializing_if = "Option::is_none")]
    onnxruntime_ratio: Option<f64>,
    /// Our multiply-adds, done directly, in a second, of the peak. Winograd's convolutions can pass 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_multiply_adds: Option<f64>,
    /// The bytes that have to pass through memory in a second, of what copies reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_bandwidth: Option<f64>,
}

/// The layout with the least, and that.
type Best = Option<(&'static str, f64)>;

/// The rows of `works` and of the losses that were measured; `batches`: steps in an epoch.
pub(super) fn results(
    works: &[Work],
    measured: &Measured,
    peaks: Option<Peaks>,
    batches: f64,
) -> Vec<Row> {
    let Measured { times, memory, costs, .. } = measured;
    let least = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
    let best = |work: &'static str, side: Side| -> Best {
        let of_both = times.iter().filter(|((name, of, _), _)| *name == work && *of == side);
        of_both.map(|((_, _, layout), times)| (*layout, quantile(times, 0.5))).min_by(least)
    };
    let row = |work: &'static str, unit: &'static str, of: &dyn Fn(Side) -> Best| {
        let value = |side| of(side).map(|(_, value)| value);
        let ours = value(Side::Ours);
        let (pytorch_layout, pytorch) = of(Side::Pytorch).unzip();
        let onnxruntime = value(Side::Onnxruntime);
        let ratio = |other: Option<f64>| other.zip(ours).map(|(other, ours)| other / ours);
        let share = |least: Option<f64>, peak: fn(Peaks) -> f64| {
            Some(least? / (ours.filter(|_| unit == "seconds")? * peak(peaks?)))
        };
        let cost = costs.get(work);
        Row {
            work,
            ours,
            candle: value(Side::Candle),
            pytorch,
            pytorch_layout,
            unit,
            ratio: ratio(pytorch),
            onnxruntime,
            onnxruntime_ratio: ratio(onnxruntime),
            share_of_multiply_adds: share(cost.map(|c| c.multiply_adds), |p| p.multiply_adds),
            share_of_bandwidth: share(cost.and_then(|c| c.bytes), |p| p.bytes),
        }
    };
    let step = |name| row(name, "seconds", &|side| best(name, side));
    let mut rows: Vec<Row> = works
        .iter()
        .map(|work| match work.kind {
            Measure::Time { .. } | Measure::FirstStep { .. } => step(work.name),
            Measure::Distill => row(work.name, "seconds", &|side| {
                let whole = |step: f64| EPOCHS * batches * step;
                // Ours asks the teacher once for each image and keeps the answers; the tutorial asks it in every step.
                if side == Side::Ours {
                    let (_, eval) = best("teacher_eval", side)?;
                    let (layout, step) = best("kd_step", side)?;
                    return Some((layout, batches * eval + whole(step)));
                }
                let (layout, step) = best("kd_step_with_teacher", side)?;
                Some((layout, whole(step)))
            }),
            Measure::Memory { .. } => row(work.name, "bytes", &|side| {
                let of_both =
                    memory.iter().filter(|((name, of, _), _)| *name == work.name && *of == side);
                of_both.map(|((_, _, layout), &bytes)| (*layout, bytes as f64)).min_by(least)
            }),
        })
        .collect();
    let was_measured = |work: &&&'static str| times.keys().any(|(name, ..)| name == *work);
    rows.extend(LOSSES.iter().filter(was_measured).map(|work| step(work)));
    rows
}

/// The value below which this share of the values lies, between neighbours in proportion.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

/// On the terminal, in Markdown: what docs/performance.md shows is this.
pub(super) fn print_table(report: &Report, measured: &Measured, took: Duration) {
    let versions = report.versions.iter().map(|(name, version)| format!("{name} {version}"));
    println!(
        "\n{}, {} threads, batch {}, {}; {}; measured in {} s\n",
        report.processor,
        report.threads,
        report.batch_size,
        report.precision,
        versions.collect::<Vec<_>>().join(", "),
        took.as_secs()
    );
    if let Some(Peaks { multiply_adds, bytes }) = report.peaks {
        println!(
            "All threads together reach {:.1} billion multiply-adds a second in registers, and copy {:.1} GB/s (reads and writes together).\n",
            multiply_adds / 1e9,
            bytes / 1e9
        );
    }
    println!(
        "| work | ours | candle | PyTorch's best | its layout | PyTorch / ours | ONNX Runtime | ONNX Runtime / ours | of the peak's multiply-adds | of memory's bandwidth |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let times_of = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let percent =
        |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share));
    for row in &report.results {
        let show = |value: Option<f64>| {
            value.map_or("-".into(), |value| match row.unit {
                "bytes" => format!("{:.0} MiB", value / f64::from(1 << 20)),
                _ => seconds(value),
            })
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.work,
            show(row.ours),
            show(row.candle),
            show(row.pytorch),
            row.pytorch_layout.unwrap_or("-"),
            times_of(row.ratio),
            show(row.onnxruntime),
            times_of(row.onnxruntime_ratio),
            percent(row.share_of_multiply_adds),
            percent(row.share_of_bandwidth)
        );
    }
    println!("\n| work | contestant | median of a step | quartiles | steps | an epoch |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for ((work, side, layout), values) in &measured.times {
        let median = quantile(values, 0.5);
        let batches = measured.images.get(work).map(|images| IMAGES.div_ceil(*images) as f64);
        let epoch = batches.map_or("-".into(), |batches| seconds(median * batches));
        println!(
            "| {work} | {} {layout} | {} | {} to {} | {} | {} |",
            side.name(),
            seconds(median),
            seconds(quantile(values, 0.25)),
            seconds(quantile(values, 0.75)),
            values.len(),
            epoch
        );
    }
}

fn seconds(value: f64) -> String {
    match value {
        ..1.0 => format!("{:.1} ms", value * 1e3),
        1.0..100.0 => format!("{value:.2} s"),
        _ => format!("{value:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::work::WORKS;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), 2.5);
        assert_eq!(quantile(&values, 0.25), 1.75);
        assert_eq!(quantile(&[7.0], 0.75), 7.0);
    }

    #[test]
    fn ten_epochs_are_put_together_and_the_best_layout_counts() {
        let times = Times::from([
            (("teacher_eval", Side::Ours, "default"), vec![0.1]),
            (("kd_step", Side::Ours, "default"), vec![0.02]),
            (("kd_step", Side::Ours, "graph"), vec![0.01]),
            (("kd_step_with_teacher", Side::Candle, "default"), vec![2.0]),
            (("kd_step_with_teacher", Side::Pytorch, "default"), vec![0.5]),
            (("kd_step_with_teacher", Side::Pytorch, "channels_last"), vec![0.4]),
        ]);
        let rows = results(&WORKS, &Measured { times, ..Measured::default() }, None, 391.0);
        let row = rows.iter().find(|row| row.work == "distill_10_epochs").expect("the row");
        assert!((row.ours.expect("ours") - (39.1 + 39.1)).abs() < 1e-9);
        assert!((row.candle.expect("candle") - 7820.0).abs() < 1e-9);
        assert_eq!(row.pytorch_layout, Some("channels_last"));
        assert!((row.ratio.expect("ratio") - 0.4 * 3910.0 / 78.2).abs() < 1e-9);
        let step = rows.iter().find(|row| row.work == "teacher_step").expect("the row");
        assert_eq!((step.ours, step.pytorch, step.ratio), (None, None, None));
    }

    /// 8 billion multiply-adds in 0.2 s are 40 billion a second, half of 80; ONNX Runtime's time is not PyTorch's.
    #[test]
    fn shares_are_of_the_peaks_and_other_sides_have_their_own_ratio() {
        let times = Times::from([
            (("resnet20_eval", Side::Ours, "default"), vec![0.2, 0.1, 0.3]),
            (("resnet20_eval", Side::Onnxruntime, "onnxruntime"), vec![0.3]),
            (("resnet20_step", Side::Ours, "default"), vec![0.5]),
        ]);
        let costs = BTreeMap::from([
            ("resnet20_eval", Cost { multiply_adds: 8e9, bytes: None }),
            ("resnet20_step", Cost { multiply_adds: 50e9, bytes: Some(5e9) }),
        ]);
        let measured = Measured { times, costs, ..Measured::default() };
        let peaks = Peaks { multiply_adds: 80e9, bytes: 10e9 };
        let lower = Peaks { multiply_adds: 1e9, bytes: 40e9 };
        let rows = results(&WORKS, &measured, Some(peaks.or_higher(lower)), 391.0);
        let row = |work| rows.iter().find(|row| row.work == work).expect("the row");
        let (eval, step) = (row("resnet20_eval"), row("resnet20_step"));
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.expect("a number") - expected).abs() < 1e-9, "{found:?}, {expected}");
        };
        near(eval.share_of_multiply_adds, 0.5);
        near(eval.onnxruntime_ratio, 1.5);
        assert_eq!((eval.share_of_bandwidth, eval.ratio), (None, None));
        near(step.share_of_multiply_adds, 1.25);
        near(step.share_of_bandwidth, 0.25);
        assert_eq!(step.onnxruntime_ratio, None);
        assert_eq!(results(&WORKS, &measured, None, 1.0)[0].share_of_multiply_adds, None);
        let text = serde_json::to_string(&rows[0]).expect("JSON");
        assert!(!text.contains("onnxruntime") && text.contains("\"ratio\":null"), "{text}");
    }
}
