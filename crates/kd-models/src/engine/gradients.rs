//! The backward pass as a list of operations.
//!
//! A gradient lies in a *slot*. The first one that a value gets is moved there or written there, never added to zeros; a sum's
//! gradient is handed to its inputs as it is, in the same slot. What is behind a batch normalisation that one layer alone
//! reads keeps its gradient as it is behind that normalisation: the convolution before it goes through the normalisation on
//! its way in.

use kd_ops::nhwc::Activation;

use super::units::{IMAGES, Read, Units, Work};

/// An operation of the backward pass, for one image or, for a linear layer, for the batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Back {
    /// What the loss gives for a value that it was shown, by its position in [`Units::shown`].
    Seed { shown: usize, to: usize, add: bool },
    /// The gradients of a convolution: of its weight and bias where `trains`, of what it reads where there is `data`.
    /// `norm` is the normalisation behind which `from` is the gradient.
    Conv { unit: usize, from: usize, norm: Option<usize>, data: Option<Data>, trains: bool },
    /// Through an activation, by the value that it gave.
    Mask { slot: usize, value: usize, activation: Activation },
    /// The sums that make a normalisation's gradients.
    Sums { norm: usize, from: usize },
    /// Through a normalisation.
    Norm { norm: usize, from: usize, to: usize },
    /// `to += from`.
    Add { from: usize, to: usize },
    /// `to = from`.
    Copy { from: usize, to: usize },
    /// Through a unit without parameters that has one input.
    Through { unit: usize, from: usize, to: usize },
    /// The gradients of a linear layer: of its weight and bias where `trains`, of its input where there is `to`.
    Linear { unit: usize, from: usize, to: Option<usize>, trains: bool },
}

/// Where the gradient of what a convolution reads goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) to: usize,
    /// Whether it is added to what is there.
    pub(super) add: bool,
    /// The normalisation through which the convolution reads: `to` is the gradient behind it and before its activation, and
    /// the sums of [`Back::Sums`] are taken on the way.
    pub(super) sums: Option<usize>,
}

impl Back {
    /// The normalisation whose sums the operation takes.
    pub(super) fn sums(&self) -> Option<usize> {
        match *self {
            Self::Sums { norm, .. } => Some(norm),
            Self::Conv { data: Some(data), .. } => data.sums,
            _ => None,
        }
    }
}

/// The operations, and how many numbers an image's gradient has in each slot.
pub(super) struct Gradients {
    pub(super) operations: Vec<Back>,
    pub(super) slots: Vec<usize>,
    /// The slot of the images' gradient, where it is asked for and something depends on them.
    pub(super) images: Option<usize>,
}

/// The backward pass of `units`. `trains` says of a node whether it has parameters that are trained, `images` whether the
/// gradient of the images is asked for.
pub(super) fn gradients(units: &Units, trains: impl Fn(usize) -> bool, images: bool) -> Gradients {
    let mut builder = Builder {
        units,
        trains: &trains,
        needed: needed(units, &trains, images),
        of: vec![None; units.values.len()],
        made: Gradients { operations: Vec::new(), slots: Vec::new(), images: None },
    };
    for unit in (0..units.units.len()).rev() {
        builder.unit(unit);
    }
    builder.made.images = builder.of[IMAGES];
    builder.made
}

/// Which values' gradients are needed: those behind something that is trained or, with `images`, behind the images.
fn needed(units: &Units, trains: &dyn Fn(usize) -> bool, images: bool) -> Vec<bool> {
    let mut needed = vec![false; units.values.len()];
    needed[IMAGES] = images;
    for unit in &units.units {
        let own = match unit.work {
            Work::Conv { node, .. } | Work::Linear { node, .. } => trains(node),
            Work::Load => images,
            _ => false,
        };
        needed[unit.output] =
            own || unit.reads.iter().any(|read| needs(units, &needed, trains, read));
    }
    needed
}

/// Whether the gradient of what is read is needed: something that is trained is in the value or in the normalisation.
fn needs(units: &Units, needed: &[bool], trains: &dyn Fn(usize) -> bool, read: &Read) -> bool {
    needed[read.value] || read.norm.is_some_and(|norm| trains(units.norms[norm].node))
}

struct Builder<'a> {
    units: &'a Units,
    trains: &'a dyn Fn(usize) -> bool,
    needed: Vec<bool>,
    /// The slot of each value's gradient, once it has one.
    of: Vec<Option<usize>>,
    made: Gradients,
}

impl Builder<'_> {
    fn needs(&self, read: &Read) -> bool {
        needs(self.units, &self.needed, self.trains, read)
    }

    fn slot(&mut self, value: usize) -> usize {
        self.made.slots.push(self.units.values[value].map.len());
        self.made.slots.len() - 1
    }

    fn push(&mut self, operation: Back) {
        self.made.operations.push(operation);
    }

    /// The units that read a value.
    fn readers(&self, value: usize) -> impl Iterator<Item = usize> {
        let reads = move |unit: &usize| {
            self.units.units[*unit].reads.iter().any(|read| read.value == value)
        };
        (0..self.units.units.len()).filter(reads)
    }

    /// The unit that gives a value.
    fn producer(&self, value: usize) -> Option<usize> {
        self.units.units.iter().position(|unit| unit.output == value)
    }

    /// Whether a convolution gives this value as it is and one read alone asks for it, through a normalisation: then its
    /// slot has the gradient behind that normalisation.
    fn is_behind_norm(&self, value: usize) -> bool {
        if !self.units.convs_normalise {
            return false;
        }
        let Some(producer) = self.producer(value) else { return false };
        let plain = matches!(
            self.units.units[producer].work,
            Work::Conv { activation: Activation::Identity, .. }
        );
        let shown = self.units.shown.iter().any(|(_, shown)| *shown == value);
        let reads: Vec<&Read> = (self.units.units.iter())
            .flat_map(|unit| &unit.reads)
            .filter(|read| read.value == value)
            .collect();
        plain && !shown && matches!(reads[..], [read] if read.norm.is_some())
    }

    fn unit(&mut self, index: usize) {
        let output = self.units.units[index].output;
        for shown in 0..self.units.shown.len() {
            if self.units.shown[shown].1 == output && self.needed[output] {
                let add = self.of[output].is_some();
                let to = match self.of[output] {
                    Some(slot) => slot,
                    None => self.slot(output),
                };
                self.of[output] = Some(to);
                self.push(Back::Seed { shown, to, add });
            }
        }
        let Some(from) = self.of[output].filter(|_| self.needed[output]) else { return };
        let units = self.units;
        let unit = &units.units[index];
        match unit.work {
            Work::Load if self.needed[IMAGES] => self.arrive(IMAGES, from),
            Work::Load => {}
            Work::Conv { node, activation, .. } => {
                self.mask(from, output, activation);
                self.conv(index, (self.trains)(node), from);
            }
            Work::Activate { activation } => {
                self.mask(from, output, activation);
                for read in &unit.reads {
                    if self.needs(read) {
                        self.hand_down(index, read, from);
                    }
                }
            }
            Work::MaxPool { activation, .. } => {
                self.mask(from, output, activation);
                self.through(index, from);
            }
            Work::Subsample | Work::GlobalAverage | Work::Flatten | Work::Dropout { .. } => {
                self.through(index, from);
            }
            Work::Linear { node, activation } => {
                self.mask(from, output, activation);
                let trains = (self.trains)(node);
                let input = unit.reads[0].value;
                if !self.needed[input] {
                    self.push(Back::Linear { unit: index, from, to: None, trains });
                    return;
                }
                let to = self.slot(input);
                self.push(Back::Linear { unit: index, from, to: Some(to), trains });
                self.arrive(input, to);
            }
        }
    }

    /// Through an activation, where there is one.
    fn mask(&mut self, slot: usize, value: usize, activation: Activation) {
        if activation != Activation::Identity {
            self.push(Back::Mask { slot, value, activation });
        }
    }

    /// A gradient of a value has been written to a slot of its own.
    fn arrive(&mut self, value: usize, slot: usize) {
        match self.of[value] {
            None => self.of[value] = Some(slot),
            Some(to) => self.push(Back::Add { from: slot, to }),
        }
    }

    fn through(&mut self, unit: usize, from: usize) {
        let input = self.units.units[unit].reads[0].value;
        let to = self.slot(input);
        self.push(Back::Through { unit, from, to });
        self.arrive(input, to);
    }

    fn conv(&mut self, index: usize, trains: bool, from: usize) {
        let unit = &self.units.units[index];
        let (output, read) = (unit.output, unit.reads[0]);
        let norm = match self.is_behind_norm(output) {
            true => self.units.norms.iter().position(|norm| norm.value == output),
            false => None,
        };
        if !self.needs(&read) {
            self.push(Back::Conv { unit: index, from, norm, data: None, trains });
            return;
        }
        let Some(read_norm) = read.norm else {
            // It may be added to what other readers gave.
            let (to, add) = match self.of[read.value] {
                Some(slot) => (slot, true),
                None => (self.slot(read.value), false),
            };
            self.of[read.value] = Some(to);
            let data = Some(Data { to, add, sums: None });
            self.push(Back::Conv { unit: index, from, norm, data, trains });
            return;
        };
        let to = self.slot(read.value);
        let data = Some(Data { to, add: false, sums: Some(read_norm) });
        self.push(Back::Conv { unit: index, from, norm, data, trains });
        self.behind_norm(read_norm, to);
    }

    /// The gradient behind a normalisation lies in `from`: takes its sums and goes on to what it normalises.
    fn through_norm(&mut self, norm: usize, from: usize) {
        self.push(Back::Sums { norm, from });
        self.behind_norm(norm, from);
    }

    /// The gradient behind a normalisation lies in `from` and its sums are taken: goes on to what it normalises.
    fn behind_norm(&mut self, norm: usize, from: usize) {
        let value = self.units.norms[norm].value;
        if self.is_behind_norm(value) {
            self.of[value] = Some(from);
        } else if self.needed[value] {
            let to = self.slot(value);
            self.push(Back::Norm { norm, from, to });
            self.arrive(value, to);
        }
    }

    /// The gradient of a sum goes to one of its inputs.
    fn hand_down(&mut self, index: usize, read: &Read, from: usize) {
        if let Some(norm) = read.norm {
            self.through_norm(norm, from);
            return;
        }
        match self.of[read.value] {
            // A sum of a value with itself.
            Some(slot) if slot == from => {
                let twice = self.slot(read.value);
                self.push(Back::Copy { from, to: twice });
                self.push(Back::Add { from: twice, to: from });
            }
            Some(to) => self.push(Back::Add { from, to }),
            None if self.may_take_over(index, read.value) => self.of[read.value] = Some(from),
            None => {
                let to = self.slot(read.value);
                self.push(Back::Copy { from, to });
                self.of[read.value] = Some(to);
            }
        }
    }

    /// Whether the slot of the sum `index` may become that of its input `value`: no other input has it as its own, and nothing
    /// changes it before the convolutions behind whose normalisations it is the gradient have read it.
    fn may_take_over(&self, index: usize, value: usize) -> bool {
        let unit = &self.units.units[index];
        let slot = self.of[unit.output];
        let earlier = self.readers(value).filter(|reader| *reader < index);
        let changes: Vec<usize> = earlier.chain(self.producer(value)).collect();
        let others = unit.reads.iter().filter(|read| read.value != value);
        others.into_iter().all(|other| match other.norm {
            None => self.of[other.value] != slot,
            Some(_) if self.is_behind_norm(other.value) => {
                let producer = self.producer(other.value);
                changes.iter().all(|change| producer.is_some_and(|producer| producer >= *change))
            }
            Some(_) => true,
        })
    }
}
