//! What `kd profile` measured, as tables for the terminal and the page.

use kd_record::Profile;
use kd_record::profile::{NetworkProfile, PassProfile};

use crate::format::{bytes, dataset_title, grouped, memory, millions, percent};
use crate::terminal::align;
use crate::text::plain;

/// The tables of sizes and of times, for the terminal.
pub fn table(profile: &Profile) -> String {
    let mut text = String::new();
    if let Some(machine) = &profile.machine {
        text += &format!("{}; kd {}\n\n", plain(machine), plain(&profile.version));
    }
    align(&mut text, &sizes(profile));
    text.push('\n');
    align(&mut text, &times(profile));
    for note in NOTES {
        text += &format!("\n{note}");
    }
    text.push('\n');
    text
}

pub(crate) const NOTES: [&str; 2] = [
    "Times are of a batch's forward pass in milliseconds: the median, and in parentheses what nine of ten stayed within.",
    "Memory is what the pass holds at its peak with one batch of that size: weights, images, layers' values, threads' own.",
];

/// A row for each network: what it is, how large, how often right.
pub(crate) fn sizes(profile: &Profile) -> Vec<Vec<String>> {
    let head =
        ["file", "network", "images", "parameters", "multiply-adds", "file size", "accuracy %"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for network in &profile.networks {
        let [channels, height, width] = network.input;
        rows.push(vec![
            plain(&network.file),
            plain(&network.network),
            format!("{channels}x{height}x{width}"),
            grouped(network.parameters),
            millions(network.multiply_adds),
            bytes(network.file_bytes),
            accuracy(network),
        ]);
    }
    rows
}

fn accuracy(network: &NetworkProfile) -> String {
    let Some(accuracy) = &network.accuracy else { return "not known".into() };
    let share = percent(accuracy.share);
    match (&accuracy.dataset, accuracy.images) {
        (Some(dataset), Some(images)) => {
            format!("{share} ({}, {})", plain(dataset_title(dataset)), grouped(images))
        }
        _ => share,
    }
}

/// A row for each network: the time of each pass, and the memory of each batch size.
pub(crate) fn times(profile: &Profile) -> Vec<Vec<String>> {
    let mut head = vec!["file".to_owned()];
    let first: &[PassProfile] = profile.networks.first().map_or(&[], |network| &network.passes);
    for pass in first {
        head.push(format!("{}, {}", count(pass.batch, "image"), count(pass.threads, "thread")));
        head.push("memory".into());
    }
    let mut rows = vec![head];
    for network in &profile.networks {
        let mut row = vec![plain(&network.file)];
        for pass in &network.passes {
            row.push(format!("{:.2} ({:.2})", pass.median_ms, pass.p90_ms));
            row.push(memory(pass.peak_bytes));
        }
        rows.push(row);
    }
    rows
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kd_record::profile::Accuracy;

    /// Teacher and student, the student's accuracy known.
    pub(crate) fn profile() -> Profile {
        let pass = |batch, median_ms| PassProfile {
            batch,
            threads: 2,
            timed: 100,
            median_ms,
            p90_ms: 1.25 * median_ms,
            peak_bytes: 3 << 20,
        };
        let network = |file: &str, parameters, accuracy| NetworkProfile {
            file: file.into(),
            network: file.into(),
            input: [3, 32, 32],
            classes: 10,
            parameters,
            multiply_adds: 94_200_000,
            file_bytes: 4 * parameters,
            passes: vec![pass(1, 2.0), pass(32, 40.0)],
            accuracy,
        };
        let known = |share| {
            Some(Accuracy { share, images: Some(10_000), dataset: Some("synthetic".into()) })
        };
        Profile {
            format: kd_record::profile::FORMAT,
            version: "0.2.0".into(),
            machine: Some("a processor, 2 cores".into()),
            networks: vec![
                network("teacher", 1_186_986, None),
                network("student", 267_738, known(0.714)),
            ],
        }
    }

    #[test]
    fn every_figure_stands_in_its_column() {
        let text = table(&profile());
        for line in [
            "a processor, 2 cores; kd 0.2.0",
            "file     network   images  parameters  multiply-adds  file size                          accuracy %",
            "teacher  teacher  3x32x32   1,186,986         94.2 M    4.75 MB                           not known",
            "student  student  3x32x32     267,738         94.2 M    1.07 MB  71.40 (Synthetic pictures, 10,000)",
            "file     1 image, 2 threads  memory  32 images, 2 threads  memory",
            "student         2.00 (2.50)   3 MiB         40.00 (50.00)   3 MiB",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
