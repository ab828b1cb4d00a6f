//! Whether a network's confidence is its accuracy: Guo et al., On Calibration of Modern Neural
//! Networks (2017), section 2.

use crate::charts::{self, Reliability};
use crate::experiment::Run;
use crate::format::percent;
use crate::format::{grouped, signed};
use crate::page::parts::{Figure, Section, Shown, Table, safe};
use crate::statistics;
use kd_record::TestOutputs;

use crate::softmax::{argmax, softmax};

/// As many as the paper's.
const BINS: usize = 15;

/// Images whose confidence is in one interval.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Bin {
    images: u64,
    right: u64,
    /// Summed over the images.
    confidence: f64,
}

/// The images by confidence (the largest share of the softmax): bin m of M has those in
/// ((m-1)/M, m/M].
fn bins(outputs: &TestOutputs) -> [Bin; BINS] {
    let mut bins = [Bin::default(); BINS];
    for (logits, label) in outputs.rows() {
        let answer = argmax(logits);
        let confidence = softmax(logits, 1.0)[answer];
        let place = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let bin = &mut bins[place];
        bin.images += 1;
        bin.right += u64::from(answer == label);
        bin.confidence += confidence;
    }
    bins
}

/// Expected calibration error: |share right - mean confidence| of each bin, weighted by its images.
fn expected_error(bins: &[Bin; BINS]) -> f64 {
    let images: u64 = bins.iter().map(|bin| bin.images).sum();
    let gaps = bins.iter().map(|bin| (bin.right as f64 - bin.confidence).abs());
    gaps.sum::<f64>() / images.max(1) as f64
}

/// Mean confidence minus share right.
fn over_confidence(bins: &[Bin; BINS]) -> (f64, f64) {
    let images = bins.iter().map(|bin| bin.images).sum::<u64>().max(1) as f64;
    let confidence = bins.iter().map(|bin| bin.confidence).sum::<f64>() / images;
    let right = bins.iter().map(|bin| bin.right).sum::<u64>() as f64 / images;
    (confidence, confidence - right)
}

/// The expected calibration error of a run that has its outputs.
pub(crate) fn error_of(run: &Run) -> Option<f64> {
    Some(expected_error(&bins(run.outputs.as_ref()?)))
}

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let mut table = Table {
        head: ["Run", "ECE, points", "Mean confidence %", "Confidence − accuracy", "Images"]
            .map(str::to_owned)
            .to_vec(),
        ..Table::default()
    };
    let mut figures = Vec::new();
    for shown in shown {
        let of_runs: Vec<[Bin; BINS]> =
            shown.arm.runs.iter().filter_map(|run| Some(bins(run.outputs.as_ref()?))).collect();
        if of_runs.is_empty() {
            continue;
        }
        let over = |of: &dyn Fn(&[Bin; BINS]) -> f64| -> (f64, Option<f64>) {
            let values: Vec<f64> = of_runs.iter().map(|bins| 100.0 * of(bins)).collect();
            (statistics::mean(&values).unwrap_or(f64::NAN), statistics::standard_deviation(&values))
        };
        let spread = |(mean, deviation): (f64, Option<f64>)| match deviation {
            Some(deviation) => format!("{mean:.2} ± {deviation:.2}"),
            None => format!("{mean:.2}"),
        };
        let mut pooled = [Bin::default(); BINS];
        for (sum, bin) in of_runs.iter().flat_map(|bins| bins.iter().enumerate()) {
            pooled[sum].images += bin.images;
            pooled[sum].right += bin.right;
            pooled[sum].confidence += bin.confidence;
        }
        let images: u64 = pooled.iter().map(|bin| bin.images).sum();
        let error = spread(over(&expected_error));
        table.rows.push(vec![
            shown.label.clone(),
            error.clone(),
            spread(over(&|bins| over_confidence(bins).0)),
            signed(over(&|bins| over_confidence(bins).1).0, 2),
            grouped(images),
        ]);
        figures.push(figure(shown, &pooled, &error));
    }
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec![format!(
        "Test images by the network's confidence, the largest share of its softmax, in {BINS} intervals. On the dashed line confidence equals accuracy; below it the network is overconfident. The strip shows how the images spread. ECE (expected calibration error): distance from the line, mean over the images (Guo et al., 2017)."
    )];
    if several {
        intro.push("The seeds' images are put together in the diagrams; ECE is one seed's, mean ± standard deviation.".to_owned());
    }
    (!figures.is_empty()).then(|| Section {
        id: "calibration",
        title: "Calibration",
        intro,
        small: true,
        tables_first: true,
        numeric: true,
        figures,
        tables: vec![table],
        ..Section::default()
    })
}

fn figure(shown: &Shown<'_>, bins: &[Bin; BINS], error: &str) -> Figure {
    let mut numbers = Table {
        head: ["Confidence", "Images", "Mean confidence %", "Accuracy %"]
            .map(str::to_owned)
            .to_vec(),
        ..Table::default()
    };
    let mut drawn = Vec::new();
    let images = bins.iter().map(|bin| bin.images).sum::<u64>().max(1) as f64;
    for (place, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.images > 0) {
        let (from, to) = (place as f64 / BINS as f64, (place + 1) as f64 / BINS as f64);
        let of = bin.images as f64;
        let (confidence, right) = (bin.confidence / of, bin.right as f64 / of);
        let interval = format!("{:.0}–{:.0} %", 100.0 * from, 100.0 * to);
        drawn.push(Reliability {
            from,
            to,
            right,
            share: of / images,
            title: format!(
                "confidence {interval}: {} images, mean confidence {} %, accuracy {} %",
                grouped(bin.images),
                percent(confidence),
                percent(right)
            ),
        });
        numbers.rows.push(vec![interval, grouped(bin.images), percent(confidence), percent(right)]);
    }
    Figure {
        title: format!("{}: ECE {error}", shown.label),
        svg: safe(charts::reliability_diagram(
            &format!("Reliability diagram of {}: accuracy over confidence", shown.label),
            shown.slot,
            &drawn,
        )),
        numbers,
        ..Figure::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(rows: &[(f64, bool)]) -> TestOutputs {
        // Two classes; the first with the given share, and right or not.
        let logits =
            rows.iter().flat_map(|(share, _)| [share.ln() as f32, (1.0 - share).ln() as f32]);
        TestOutputs {
            classes: 2,
            logits: logits.collect(),
            labels: rows.iter().map(|(_, right)| u32::from(!right)).collect(),
            teacher_logits: None,
            sample: Vec::new(),
            shape: [3, 1, 1],
            sample_images: Vec::new(),
            weights_sha256: String::new(),
        }
    }

    #[test]
    fn the_calibration_error_is_the_papers() {
        // Two bins: 0.9 said four times and right three times; 0.58 said once and wrong.
        let said = [(0.9, true), (0.9, true), (0.9, true), (0.9, false), (0.58, false)];
        let bins = bins(&outputs(&said));
        assert_eq!((bins[13].images, bins[13].right), (4, 3));
        assert_eq!((bins[8].images, bins[8].right), (1, 0));
        // 4/5 |3/4 - 0.9| + 1/5 |0 - 0.58| = 0.12 + 0.116.
        assert!((expected_error(&bins) - 0.236).abs() < 1e-6);
        // Mean confidence 0.836, accuracy 0.6.
        let (confidence, over) = over_confidence(&bins);
        assert!((confidence - 0.836).abs() < 1e-6 && (over - 0.236).abs() < 1e-6);
    }

    #[test]
    fn a_bins_upper_edge_belongs_to_it() {
        // Logits as far apart as f32 allows: the share is 1 exactly, in the last bin.
        let mut sure = outputs(&[(0.5, true)]);
        sure.logits = vec![100.0, -100.0];
        assert_eq!(bins(&sure)[BINS - 1].images, 1);
    }
}
