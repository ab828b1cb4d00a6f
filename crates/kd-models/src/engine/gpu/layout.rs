//! Where everything lies that a pass on a GPU needs.

use candle_core::Result;
use kd_ops::cuda::nchw::{Arena, Conv, Gpu, Norm, NormState, Size, Span};
use kd_ops::nhwc::{Activation, Map, Place, Windows};

use super::super::plan::Plan;
use super::super::units::{Unit, Work};

/// The memory of a pass over a batch, and what is known of its operations.
pub(crate) struct Memory {
    pub(super) batch: usize,
    arena: Arena,
    device: candle_core::Device,
    /// Numbers of an image that outlive an operation; behind those of all images lie the others.
    kept: usize,
    /// Of each unit its convolution, if it is one.
    convs: Vec<Option<Conv>>,
    /// Of each unit that is a max-pool, the convolution before it whose products it pools.
    pub(super) pooled: Vec<Option<usize>>,
    z: Room,
    columns: Room,
    sums: Room,
    /// The state of each normalisation.
    norms: Vec<Room>,
    /// Of each unit the weight and bias of a convolution with a folded normalisation.
    folded: Vec<(Room, Room)>,
    /// Of each unit a max-pool's winners.
    winners: Vec<Room>,
    /// Whether a captured graph uses it, so that it must stay where it is.
    pub(super) in_graph: bool,
}

/// A part of the arena.
#[derive(Clone, Copy, Default)]
struct Room {
    offset: usize,
    len: usize,
}

/// Hands out parts of an arena, each at a whole number of 256 bytes.
struct Rooms {
    end: usize,
}

impl Rooms {
    fn take(&mut self, len: usize) -> Room {
        let offset = self.end;
        self.end += len.next_multiple_of(64);
        Room { offset, len }
    }
}

/// The 2x2 windows of stride 2 that a convolution's products are pooled by on their way.
const POOL2: Windows = Windows { kernel: 2, stride: 2, padding: 0 };

/// The convolution whose products a unit pools: it gives what this max-pool alone reads.
fn pooled(plan: &Plan, unit: &Unit) -> Option<usize> {
    let units = &plan.units;
    let Work::MaxPool { windows: POOL2, .. } = unit.work else { return None };
    let value = unit.reads[0].value;
    let alone = units.units.iter().flat_map(|unit| &unit.reads).filter(|read| read.value == value);
    let shown = units.shown.iter().any(|(_, shown)| *shown == value);
    let normalised = units.norms.iter().any(|norm| norm.value == value);
    let plain = |unit: &Unit| {
        unit.output == value
            && matches!(unit.work, Work::Conv { activation: Activation::Identity, .. })
    };
    let conv = units.units.iter().position(plain);
    conv.filter(|_| alone.count() == 1 && !shown && !normalised)
}

impl Memory {
    /// Takes memory for a pass over `batch` images.
    pub(super) fn new(gpu: &Gpu, plan: &Plan, batch: usize) -> Result<Self> {
        let units = &plan.units;
        let convs = units.units.iter().map(|unit| match &unit.work {
            Work::Conv { conv, .. } => Ok(Some(Conv::new(gpu, &conv.sizes(), batch)?)),
            _ => Ok(None),
        });
        let convs: Vec<Option<Conv>> = convs.collect::<Result<_>>()?;
        let pooled: Vec<Option<usize>> =
            units.units.iter().map(|unit| pooled(plan, unit)).collect();
        let mut rooms = Rooms { end: 0 };
        rooms.take((plan.kept + plan.local) * batch);
        let of_convs = |len: fn(&Conv) -> usize| convs.iter().flatten().map(len).max().unwrap_or(0);
        let z = rooms.take(of_convs(Conv::output_len));
        let columns = rooms.take(of_convs(Conv::columns_len));
        let of_norms = units.norms.iter().map(|norm| {
            Norm { size: size(&units.values[norm.value].map, batch), eps: 0.0 }.sums_len()
        });
        let sums = rooms.take(of_norms.chain([of_convs(Conv::sums_len)]).max().unwrap_or(0));
        let norms = units
            .norms
            .iter()
            .map(|norm| rooms.take(NormState::len(units.values[norm.value].map.channels)));
        let norms = norms.collect();
        let folded = units.units.iter().map(|unit| match &unit.work {
            Work::Conv { fold: Some(_), conv, .. } => {
                let sizes = conv.sizes();
                let window = sizes.inputs * sizes.kernel * sizes.kernel;
                (rooms.take(sizes.outputs * window), rooms.take(sizes.outputs))
            }
            _ => Default::default(),
        });
        let folded = folded.collect();
        let winners = units.units.iter().zip(&pooled).map(|(unit, pooled)| {
            let numbers = batch * units.values[unit.output].map.len();
            match (&unit.work, pooled) {
                (Work::MaxPool { .. }, Some(_)) => rooms.take(numbers.div_ceil(4)),
                (Work::MaxPool { .. }, None) => rooms.take(numbers),
                _ => Room::default(),
            }
        });
        let winners = winners.collect();
        let (arena, kept) = (Arena::new(gpu, rooms.end)?, plan.kept);
        let (in_graph, device) = (false, gpu.device());
        Ok(Self {
            batch,
            arena,
            device,
            kept,
            convs,
            pooled,
            z,
            columns,
            sums,
            norms,
            folded,
            winners,
            in_graph,
        })
    }

    /// Whether it lies on this GPU.
    pub(super) fn is_on(&self, gpu: &Gpu) -> bool {
        self.device.same_device(&gpu.device())
    }

    fn room(&self, room: Room) -> Span<'_> {
        self.arena.span(room.offset, room.len)
    }

    /// The whole batch's numbers at a place of the plan, `len` of each image.
    pub(super) fn place(&self, place: Place, len: usize) -> Span<'_> {
        let offset = if place.kept { place.offset } else { self.kept + place.offset };
        self.arena.span(offset * self.batch, len * self.batch)
    }

    /// The convolution of a unit.
    pub(super) fn conv(&self, unit: usize) -> &Conv {
        let Some(conv) = &self.convs[unit] else { unreachable!("the unit is a convolution") };
        conv
    }

    /// Scratch memory for a convolution's products, or their gradient.
    pub(super) fn z(&self) -> Span<'_> {
        self.room(self.z)
    }

    /// Scratch memory for a convolution's windows.
    pub(super) fn columns(&self) -> Span<'_> {
        self.room(self.columns)
    }

    /// Scratch memory for sums over the batch.
    pub(super) fn sums(&self) -> Span<'_> {
        self.room(self.sums)
    }

    /// The state of a normalisation of so many channels.
    pub(super) fn norm(&self, norm: usize, channels: usize) -> NormState<'_> {
        NormState::at(self.room(self.norms[norm]), channels)
    }

    /// The weight and bias of the convolution of a unit, with the normalisation that is folded into them.
    pub(super) fn folded(&self, unit: usize) -> (Span<'_>, Span<'_>) {
        let (weight, bias) = self.folded[unit];
        (self.room(weight), self.room(bias))
    }

    /// The winners of a unit that is a max-pool.
    pub(super) fn winners(&self, unit: usize) -> Span<'_> {
        self.room(self.winners[unit])
    }

    /// The size of the whole batch's map.
    pub(super) fn size(&self, map: &Map) -> Size {
        size(map, self.batch)
    }
}

fn size(map: &Map, batch: usize) -> Size {
    Size { batch, channels: map.channels, height: map.height, width: map.width }
}
