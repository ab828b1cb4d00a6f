//! The "dark knowledge" (Hinton et al., 2015): the probabilities that a teacher gives the classes of single test
//! images at a temperature that the page's slider changes (`page.js`), with the students' beside them.

use base64::Engine;
use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;

use crate::experiment::{Experiment, Run};
use crate::format::percent;
use crate::page::parts::{Section, Shown, Table};
use crate::softmax::{argmax, entropy, softmax};

/// The slider's range.
const HIGHEST: f64 = 20.0;
/// Without a method that has a temperature.
const USUAL: f64 = 4.0;
/// Classes shown of each image.
const CLASSES: usize = 5;
/// Images shown of each kind.
const PER_KIND: usize = 3;

/// What the template shows.
#[derive(Serialize)]
struct SoftTargets {
    temperature: String,
    highest: f64,
    /// Of the slider, from 0 to 1000: the temperature's logarithm.
    position: u32,
    students: Vec<String>,
    /// Place of the student shown at first.
    chosen: usize,
    kinds: Vec<Kind>,
    /// `{"logits": [network][image][class]}`, the teacher first.
    data: String,
}

#[derive(Serialize)]
struct Kind {
    title: &'static str,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    /// Place in the data.
    place: usize,
    source: String,
    truth: String,
    /// Number of the test image, from 0.
    number: u32,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    label: usize,
    class: String,
    truth: bool,
    /// In per cent.
    teacher: f64,
    student: f64,
}

/// A network with its logits.
struct Network<'a> {
    label: String,
    logits: &'a [f32],
}

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let experiment = shown.first()?.experiment;
    if shown.iter().any(|other| !std::ptr::eq(other.experiment, experiment)) {
        return None;
    }
    // One teacher for all: that of the headline's student, and the runs of the same seed.
    let lead = experiment.distilled().or(experiment.student())?;
    let lead = lead.runs.iter().find(|run| experiment.teacher_logits(run).is_some())?;
    let teacher = experiment.teacher_logits(lead)?;
    let outputs = lead.outputs.as_ref()?;
    let names = &lead.evaluation.as_ref()?.classes;
    let students: Vec<Network<'_>> =
        shown.iter().filter_map(|shown| student(shown, experiment, lead, teacher)).collect();
    let chosen = students.iter().position(|student| student.label == lead.start.run)?;

    let classes = outputs.classes;
    let row =
        |logits: &'_ [f32], image: u32| logits[image as usize * classes..][..classes].to_vec();
    let temperature = temperature(lead).clamp(1.0, HIGHEST);
    let mut kinds = Vec::new();
    let mut order: Vec<u32> = Vec::new();
    for (title, places) in
        chosen_images(outputs.sample.as_slice(), &outputs.labels, |image| row(teacher, image))
    {
        let images = places.into_iter().map(|place| {
            let number = outputs.sample[place];
            let truth = outputs.labels[number as usize] as usize;
            let (said, answered) = (row(teacher, number), row(students[chosen].logits, number));
            let (soft, own) = (softmax(&said, temperature), softmax(&answered, temperature));
            order.push(number);
            Image {
                place: order.len() - 1,
                source: data_url(outputs.image(place), outputs.shape),
                truth: names[truth].clone(),
                number,
                rows: classes_shown(&said, &answered, truth)
                    .into_iter()
                    .map(|label| Row {
                        label,
                        class: names[label].clone(),
                        truth: label == truth,
                        teacher: 100.0 * soft[label],
                        student: 100.0 * own[label],
                    })
                    .collect(),
            }
        });
        let images: Vec<Image> = images.collect();
        kinds.push(Kind { title, images });
    }
    kinds.retain(|kind| !kind.images.is_empty());
    let networks = std::iter::once(teacher).chain(students.iter().map(|student| student.logits));
    let of_network = |logits: &[f32]| -> Vec<Vec<f64>> {
        let rounded = |logit: &f32| (f64::from(*logit) * 1e4).round() / 1e4;
        order.iter().map(|image| row(logits, *image).iter().map(rounded).collect()).collect()
    };
    let logits: Vec<_> = networks.map(of_network).collect();
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec![
        "Some test images with the teacher's soft targets, softmax(logits / T), beside a student's probabilities at the same T. The higher T, the more the targets say of the classes that the teacher did not choose, which the labels never mention.".to_owned(),
    ];
    if several {
        intro.push(format!("Seed {}.", lead.start.seed));
    }
    Some(Section {
        id: "soft",
        title: "What the teacher knows beyond the labels",
        intro,
        soft: Some(Value::from(Serde(SoftTargets {
            temperature: format!("{temperature:.1}"),
            highest: HIGHEST,
            position: (1000.0 * temperature.ln() / HIGHEST.ln()).round() as u32,
            students: students.into_iter().map(|student| student.label).collect(),
            chosen,
            kinds,
            data: serde_json::json!({ "highest": HIGHEST, "logits": logits }).to_string(),
        }))),
        numeric: true,
        tables: vec![by_temperature(teacher, classes, &outputs.labels)],
        ..Section::default()
    })
}

/// The run of the lead's seed, if it has the same teacher and saw the same images.
fn student<'a>(
    shown: &Shown<'a>,
    experiment: &'a Experiment,
    lead: &Run,
    teacher: &[f32],
) -> Option<Network<'a>> {
    let run = shown.arm.runs.iter().find(|run| run.start.seed == lead.start.seed)?;
    let outputs = run.outputs.as_ref()?;
    let same = experiment.teacher_logits(run)? == teacher;
    same.then(|| Network { label: shown.label.clone(), logits: &outputs.logits })
}

/// Of the first method that has one.
fn temperature(run: &Run) -> f64 {
    let methods = run.setting("method").and_then(toml::Value::as_array);
    let number = |value: &toml::Value| value.as_float().or(value.as_integer().map(|i| i as f64));
    let found = methods.into_iter().flatten().find_map(|m| number(m.get("temperature")?));
    found.unwrap_or(USUAL)
}

/// Places in the sample: where the teacher hesitates and is right, where it is wrong, where it is sure.
fn chosen_images(
    sample: &[u32],
    labels: &[u32],
    logits: impl Fn(u32) -> Vec<f32>,
) -> [(&'static str, Vec<usize>); 3] {
    let mut by_entropy: Vec<(f64, usize, bool)> = sample
        .iter()
        .enumerate()
        .map(|(place, image)| {
            let logits = logits(*image);
            let right = argmax(&logits) == labels[*image as usize] as usize;
            (entropy(&softmax(&logits, 1.0)), place, right)
        })
        .collect();
    by_entropy.sort_by(|a, b| b.0.total_cmp(&a.0));
    let take = |want: bool, sure: bool| -> Vec<usize> {
        let of_kind = by_entropy.iter().filter(|(_, _, right)| *right == want);
        let places = of_kind.map(|(_, place, _)| *place);
        if sure { places.rev().take(PER_KIND).collect() } else { places.take(PER_KIND).collect() }
    };
    let hesitant = take(true, false);
    let wrong = take(false, true);
    let sure = take(true, true).into_iter().filter(|place| !hesitant.contains(place)).collect();
    [
        ("Correct, and uncertain", hesitant),
        ("Wrong, and certain", wrong),
        ("Correct, and certain", sure),
    ]
}

/// Those with the teacher's largest logits, and among them the true class and the student's answer.
fn classes_shown(teacher: &[f32], student: &[f32], truth: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..teacher.len()).collect();
    order.sort_by(|a, b| teacher[*b].total_cmp(&teacher[*a]));
    let must = [truth, argmax(student)];
    let mut kept: Vec<usize> = order.iter().copied().take(CLASSES).collect();
    for class in must.into_iter().filter(|class| !order[..CLASSES.min(order.len())].contains(class))
    {
        // The least of those that may go.
        let place = kept.iter().rposition(|other| !must.contains(other));
        if let Some(place) = place.filter(|_| !kept.contains(&class)) {
            kept.remove(place);
            kept.push(class);
        }
    }
    kept.sort_by(|a, b| teacher[*b].total_cmp(&teacher[*a]));
    kept
}

/// What a temperature does to the targets of all test images.
fn by_temperature(teacher: &[f32], classes: usize, labels: &[u32]) -> Table {
    let images = labels.len().max(1) as f64;
    let row = |temperature: f64| {
        let (mut nats, mut largest, mut truth) = (0.0, 0.0, 0.0);
        for (logits, label) in teacher.chunks_exact(classes.max(1)).zip(labels) {
            let shares = softmax(logits, temperature);
            nats += entropy(&shares);
            largest += shares[argmax(logits)];
            truth += shares[*label as usize];
        }
        vec![
            format!("{temperature}"),
            format!("{:.3}", nats / images),
            percent(largest / images),
            percent((1.0 - largest / images).max(0.0)),
            percent(truth / images),
        ]
    };
    Table {
        caption: "The teacher's targets over all test images, means".to_owned(),
        head: ["T", "Entropy, nats", "Chosen class %", "All others %", "True class %"]
            .map(str::to_owned)
            .to_vec(),
        rows: [1.0, 2.0, 4.0, 8.0, HIGHEST].map(row).to_vec(),
    }
}

/// An uncompressed BMP (24 bits, rows from below, blue first), which every browser shows.
fn data_url(pixels: &[u8], [channels, height, width]: [usize; 3]) -> String {
    let row = (3 * width).next_multiple_of(4);
    let size = 54 + row * height;
    let mut file = Vec::with_capacity(size);
    file.extend(b"BM");
    // File size, reserved, offset of the pixels; then a header of 40 bytes: width, height, one
    // plane, 24 bits; no compression and the rest zero.
    for word in [size, 0, 54, 40, width, height] {
        file.extend((word as u32).to_le_bytes());
    }
    file.extend([1, 0, 24, 0]);
    file.resize(54, 0);
    let at = |channel: usize, y: usize, x: usize| {
        let channel = channel.min(channels.saturating_sub(1));
        pixels.get((channel * height + y) * width + x).copied().unwrap_or(0)
    };
    for y in (0..height).rev() {
        let start = file.len();
        file.extend((0..width).flat_map(|x| [at(2, y, x), at(1, y, x), at(0, y, x)]));
        file.resize(start + row, 0);
    }
    format!("data:image/bmp;base64,{}", base64::engine::general_purpose::STANDARD.encode(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_class_and_the_students_answer_are_always_shown() {
        let teacher = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0];
        let mut student = [0.0; 7];
        student[6] = 1.0;
        assert_eq!(classes_shown(&teacher, &student, 0), [0, 1, 2, 3, 6]);
        assert_eq!(classes_shown(&teacher, &student, 5), [0, 1, 2, 5, 6]);
        assert_eq!(classes_shown(&teacher, &teacher, 1), [0, 1, 2, 3, 4]);
        assert_eq!(classes_shown(&[1.0, 2.0], &[2.0, 1.0], 0), [1, 0]);
    }

    #[test]
    fn the_images_are_of_the_three_kinds() {
        // Of image i the teacher says class 0 with logit i, else nothing.
        let labels = [0, 0, 0, 0, 0, 0, 0, 1, 1];
        let sample: Vec<u32> = (0..9).collect();
        let logits = |image: u32| vec![image as f32 + 0.5, 0.0];
        let [(_, hesitant), (_, wrong), (_, sure)] = chosen_images(&sample, &labels, logits);
        assert_eq!(hesitant, [0, 1, 2]);
        assert_eq!(wrong, [8, 7]);
        assert_eq!(sure, [6, 5, 4]);
    }
}
