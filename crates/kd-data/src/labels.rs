//! Subsets and parts of labelled images that are balanced over the classes: which images, by the labels alone.

use std::collections::BTreeSet;

use crate::random::{Purpose, generator, shuffle};

/// The labels as the bytes that hashes are taken of: a byte each where all are below 256, else four, little end first.
pub(crate) fn bytes(labels: &[u32]) -> Vec<u8> {
    match labels.iter().map(|&label| u8::try_from(label)).collect() {
        Ok(bytes) => bytes,
        Err(_) => labels.iter().flat_map(|label| label.to_le_bytes()).collect(),
    }
}

/// Seed of the choice of test pictures by a share.
#[cfg(feature = "images")]
const SPLIT_SEED: u64 = 5;

/// The numbers of the pictures that are trained on and of those that are tested on: of each class the share `share` is tested on.
#[cfg(feature = "images")]
pub(crate) fn cut(labels: &[u32], classes: usize, share: f64) -> [Vec<u32>; 2] {
    let (mut kept, mut tested) = (Vec::new(), Vec::new());
    let mut rng = generator(SPLIT_SEED, Purpose::Subset, 0);
    let mut by_class = vec![Vec::new(); classes];
    for (number, label) in (0..).zip(labels) {
        by_class[*label as usize].push(number);
    }
    for mut numbers in by_class {
        shuffle(&mut rng, &mut numbers);
        // A class of two pictures or more has one of each kind.
        let count = numbers.len();
        let of_test = (count as f64 * share).round() as usize;
        let of_test = of_test.max(1).min(count.saturating_sub(1));
        tested.extend(numbers.drain(..of_test));
        kept.extend(numbers);
    }
    kept.sort_unstable();
    tested.sort_unstable();
    [kept, tested]
}

/// How many images each of the first `classes` classes has; images of further classes are not counted.
pub fn class_counts(labels: &[u32], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    for &label in labels {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    counts
}

/// Draws at most `limit` images, as evenly over the first `classes` classes as can be: their numbers in rising order,
/// the same in every run with the same seed.
///
/// Where `limit` is no multiple of `classes`, the first classes have one image more. A smaller
/// subset is part of each larger one with the same seed. Images of further classes are left out.
pub fn balanced_subset(labels: &[u32], limit: usize, classes: usize, seed: u64) -> Vec<u32> {
    sorted(ranked(labels, classes, seed).into_iter().take(limit))
}

/// Draws at most `count` images to be held out of the others, as [`balanced_subset`] does but
/// never a class's last one, so that each of the first `classes` classes that has an image keeps one. There are fewer
/// than `count` where no class can give more.
///
/// Where `balanced_subset` leaves each class an image, both draw the same.
pub fn held_out_subset(labels: &[u32], count: usize, classes: usize, seed: u64) -> Vec<u32> {
    let counts = class_counts(labels, classes);
    let given = |ranked: &Ranked| ranked.rank + 1 < counts[ranked.label as usize];
    sorted(ranked(labels, classes, seed).into_iter().filter(given).take(count))
}

/// Cuts the images of the first `classes` classes into `of` parts of nearly equal size, the same in every run with the
/// same seed: the numbers of each part's images, in rising order. An image is in exactly one part.
///
/// A part is what one balanced subset has more than the one before. Where that would put all of a class's two or more
/// images into one part, or leave a part without a class that has more images than there are parts, the images are dealt
/// out class by class instead, one to each part in turn.
pub fn balanced_parts(labels: &[u32], of: usize, classes: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut ranked = ranked(labels, classes, seed);
    let end = |part: usize| ranked.len() * part / of;
    let cut: Vec<&[Ranked]> = (0..of).map(|part| &ranked[end(part)..end(part + 1)]).collect();
    if are_spread(&cut, &class_counts(labels, classes)) {
        return cut.into_iter().map(|part| sorted(part.iter().copied())).collect();
    }
    ranked.sort_unstable_by_key(|ranked| (ranked.label, ranked.rank));
    let dealt = |part| sorted(ranked.iter().copied().skip(part).step_by(of));
    (0..of).map(dealt).collect()
}

/// The images of the first `classes` classes in the order in which subsets take them: the first of each class, then the
/// second, ...
fn ranked(labels: &[u32], classes: usize, seed: u64) -> Vec<Ranked> {
    let mut order: Vec<u32> = (0..labels.len() as u32).collect();
    shuffle(&mut generator(seed, Purpose::Subset, 0), &mut order);
    let mut taken = vec![0; classes];
    let mut ranked = Vec::with_capacity(order.len());
    for index in order {
        let label = labels[index as usize];
        if let Some(rank) = taken.get_mut(label as usize) {
            ranked.push(Ranked { rank: *rank, label, index });
            *rank += 1;
        }
    }
    ranked.sort_unstable();
    ranked
}

/// An image in the order of its class; ordered by rank, then by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    /// How many images of its class come before it in the shuffled order.
    rank: usize,
    label: u32,
    /// The image's number in the split.
    index: u32,
}

/// The images' numbers, in rising order.
fn sorted(ranked: impl Iterator<Item = Ranked>) -> Vec<u32> {
    let mut indices: Vec<u32> = ranked.map(|ranked| ranked.index).collect();
    indices.sort_unstable();
    indices
}

/// Whether no class of two images or more lies in one part alone, and each class with more images than there are parts in all
/// of them. `counts` are the classes' images.
fn are_spread(parts: &[&[Ranked]], counts: &[usize]) -> bool {
    let mut with = vec![0; counts.len()];
    for part in parts {
        let classes: BTreeSet<u32> = part.iter().map(|ranked| ranked.label).collect();
        classes.into_iter().for_each(|class| with[class as usize] += 1);
    }
    counts.iter().zip(with).all(|(&count, with)| {
        (count < 2 || with > 1) && (count <= parts.len() || with == parts.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes in uneven numbers.
    fn uneven() -> Vec<u32> {
        (0..60).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect()
    }

    /// How many images of each class a choice has.
    fn counts_of(labels: &[u32], chosen: &[u32], classes: usize) -> Vec<usize> {
        let chosen: Vec<u32> = chosen.iter().map(|&index| labels[index as usize]).collect();
        class_counts(&chosen, classes)
    }

    #[test]
    fn labels_are_hashed_as_bytes_where_they_fit() {
        assert_eq!(bytes(&[0, 255, 7]), [0, 255, 7]);
        assert_eq!(bytes(&[1, 256]), [1, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_subset_is_balanced_and_the_same_in_every_run() {
        let labels = uneven();
        let subset = balanced_subset(&labels, 14, 3, 7);
        assert_eq!(counts_of(&labels, &subset, 3), [5, 5, 4]);
        assert!(subset.is_sorted());
        assert_eq!(subset, balanced_subset(&labels, 14, 3, 7));
        assert_ne!(subset, balanced_subset(&labels, 14, 3, 8));
        let larger = balanced_subset(&labels, 20, 3, 7);
        assert!(subset.iter().all(|index| larger.contains(index)));
    }

    #[test]
    fn a_class_that_runs_out_is_made_up_for_by_the_others() {
        let labels = uneven();
        let subset = balanced_subset(&labels, 50, 3, 0);
        assert_eq!(counts_of(&labels, &subset, 3), [20, 15, 15]);
        assert_eq!(balanced_subset(&labels, 1000, 3, 0), (0..60).collect::<Vec<_>>());
        assert!(balanced_subset(&labels, 0, 3, 0).is_empty());
    }

    /// Classes of so many images each.
    fn of_counts(counts: &[usize]) -> Vec<u32> {
        (0..).zip(counts).flat_map(|(label, &count)| vec![label; count]).collect()
    }

    #[test]
    fn what_is_held_out_leaves_each_class_an_image() {
        let rare = of_counts(&[200, 20, 5, 1, 0]);
        for (count, expected) in
            [(3, [1, 1, 1, 0, 0]), (30, [13, 13, 4, 0, 0]), (999, [199, 19, 4, 0, 0])]
        {
            let held_out = held_out_subset(&rare, count, 5, 1);
            assert_eq!(counts_of(&rare, &held_out, 5), expected);
            assert!(held_out.is_sorted());
        }
        // Nothing is drawn otherwise where no class is emptied.
        let even = of_counts(&[50; 10]);
        for count in [0, 7, 10, 333, 490] {
            assert_eq!(held_out_subset(&even, count, 10, 1), balanced_subset(&even, count, 10, 1));
        }
        assert_eq!(held_out_subset(&rare, 9, 5, 1), {
            let plain = balanced_subset(&rare, 10, 5, 1);
            plain.into_iter().filter(|&index| rare[index as usize] != 3).collect::<Vec<_>>()
        });
    }

    #[test]
    fn no_part_has_a_class_to_itself() {
        for (counts, of) in [
            (vec![200, 20, 5], 2),
            (vec![200, 20, 5], 5),
            (vec![100, 100, 10], 3),
            (vec![40, 2, 2], 4),
            (vec![3, 1], 2),
        ] {
            let labels = of_counts(&counts);
            let parts = balanced_parts(&labels, of, counts.len(), 2);
            let all: BTreeSet<u32> = parts.concat().into_iter().collect();
            assert_eq!((parts.len(), all.len()), (of, labels.len()), "{counts:?}");
            assert_eq!(parts.concat().len(), labels.len());
            let sizes = parts.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1, "{counts:?}");
            for part in &parts {
                let inside = counts_of(&labels, part, counts.len());
                for (class, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 1) {
                    assert!(inside[class] < count, "{counts:?}: {inside:?}");
                    assert!(inside[class] >= count / of, "{counts:?}: {inside:?}");
                }
            }
        }
    }

    #[test]
    fn parts_of_balanced_classes_are_what_each_larger_subset_adds() {
        for (counts, of) in [(vec![50; 10], 4), (vec![11, 11, 11, 10, 10], 7), (vec![4; 10], 4)] {
            let labels = of_counts(&counts);
            let up_to = |part| balanced_subset(&labels, labels.len() * part / of, counts.len(), 2);
            let cut = (0..of).map(|part| -> Vec<u32> {
                let before = up_to(part);
                up_to(part + 1).into_iter().filter(|i| !before.contains(i)).collect()
            });
            assert_eq!(balanced_parts(&labels, of, counts.len(), 2), cut.collect::<Vec<_>>());
        }
    }
}
