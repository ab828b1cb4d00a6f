//! Accuracy over latency, as `kd profile` measured it.

use kd_record::Profile;

use crate::charts::{Marked, scatter};
use crate::experiment::Experiment;
use crate::page::parts::{Figure, Key, Section, Table, key, safe};
use crate::profile::{NOTES, sizes, times};

pub(crate) fn section(experiments: &[Experiment]) -> Option<Section> {
    let found: Vec<&Profile> =
        experiments.iter().filter_map(|experiment| experiment.profile.as_ref()).collect();
    let tables = found.iter().flat_map(|profile| {
        let caption = profile.machine.clone().unwrap_or_default();
        [table(caption, sizes(profile)), table(String::new(), times(profile))]
    });
    let figures = found.iter().filter_map(|profile| figure(profile));
    (!found.is_empty()).then(|| Section {
        id: "profile",
        title: "Accuracy over latency",
        numeric: true,
        intro: NOTES.map(str::to_owned).to_vec(),
        tables: tables.collect(),
        figures: figures.collect(),
        ..Section::default()
    })
}

fn table(caption: String, mut rows: Vec<Vec<String>>) -> Table {
    let head = rows.remove(0);
    Table { caption, head, rows }
}

/// The networks whose accuracy is known; `None` where no pass of one image was timed, or no accuracy is known.
fn figure(profile: &Profile) -> Option<Figure> {
    let (mut points, mut legend): (Vec<Marked>, Vec<Key>) = Default::default();
    for (slot, network) in profile.networks.iter().enumerate() {
        let (Some(accuracy), Some(pass)) = (&network.accuracy, network.of_one_image()) else {
            continue;
        };
        let (label, y) = (network.file.clone(), 100.0 * accuracy.share);
        legend.push(key(slot, &label));
        points.push(Marked { label, slot, x: pass.median_ms, y });
    }
    if points.is_empty() {
        return None;
    }
    let across = "ms an image, median, one image at a time";
    Some(Figure {
        title: "Further up is more often right, further left is quicker".into(),
        legend,
        svg: safe(scatter("Accuracy in percent over milliseconds an image", across, "%", &points)),
        ..Figure::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_unknown_accuracy_stands_in_the_table_alone() {
        let figure = figure(&crate::profile::tests::profile()).unwrap();
        assert_eq!(figure.legend.len(), 1);
        assert_eq!(figure.legend[0].label, "student");
        let mut unknown = crate::profile::tests::profile();
        unknown.networks.iter_mut().for_each(|network| network.accuracy = None);
        assert!(super::figure(&unknown).is_none());
    }
}
