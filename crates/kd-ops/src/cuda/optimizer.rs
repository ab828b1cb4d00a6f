//! The state that an optimiser keeps of its parameters in a GPU's memory, and a step of Adam and of SGD on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Result, Tensor, Var, bail};

use super::graph::{StepScalars, address_of_step};
use super::tensor_table::{FILE, THREADS, TensorTable, address, pairs};
use super::{device, kernel, launch, ptx};
use crate::adam::WeightDecay;

/// An optimiser's state on a GPU: one or two numbers for each element of each parameter; empty before its first step
/// there.
///
/// A clone shares the memory until one of the two takes a step, which then works on a copy. The step of a captured graph
/// does not count as one here: it changes the memory that both share.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptimizerState(Option<Arc<StateTensors>>);

/// Two states are equal when they share their memory: nothing is read from the GPU for a comparison.
impl PartialEq for OptimizerState {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

#[derive(Debug)]
struct StateTensors {
    /// By parameter: where its elements start in each of the tensors below, and how many they are.
    places: BTreeMap<String, (usize, usize)>,
    /// The parameters that have had a gradient.
    seen: BTreeSet<String>,
    /// f32 `[elements of all parameters]`, one tensor for each kind of number that the optimiser keeps of an element: two
    /// for Adam, one for SGD with momentum, none without.
    kinds: Vec<Tensor>,
}

impl OptimizerState {
    /// Copies a state of `kinds` numbers an element to the GPU. `saved` gives what the host has of a parameter, a slice for
    /// each kind; a parameter without that starts with zeros.
    ///
    /// # Errors
    /// When what was saved doesn't have the parameter's size.
    pub(crate) fn new<'a>(
        op: &str,
        parameters: &BTreeMap<String, Var>,
        kinds: usize,
        saved: impl Fn(&str) -> Option<Vec<&'a [f32]>>,
    ) -> Result<Self> {
        let Some(first) = parameters.values().next() else { return Ok(Self(None)) };
        let (mut places, mut seen, mut start) = (BTreeMap::new(), BTreeSet::new(), 0);
        let mut values = vec![Vec::new(); kinds];
        for (name, parameter) in parameters {
            let len = parameter.elem_count();
            places.insert(name.clone(), (start, len));
            // The kernels read words of four.
            let end = (start + len).next_multiple_of(4);
            let saved = saved(name).filter(|saved| saved.iter().any(|values| !values.is_empty()));
            for (kind, values) in values.iter_mut().enumerate() {
                match saved.as_ref().and_then(|saved| saved.get(kind)) {
                    Some(saved) if saved.len() != len => bail!(
                        "{op}: what was saved of {name} has {} elements, the parameter has {len}",
                        saved.len()
                    ),
                    Some(saved) => values.extend_from_slice(saved),
                    None => {}
                }
                values.resize(end, 0.0);
            }
            start = end;
            if saved.is_some() {
                seen.insert(name.clone());
            }
        }
        let kinds =
            values.into_iter().map(|values| Tensor::from_vec(values, start, first.device()));
        let kinds = kinds.collect::<Result<_>>()?;
        Ok(Self(Some(Arc::new(StateTensors { places, seen, kinds }))))
    }

    /// Whether it has `kinds` numbers for each element of exactly these parameters.
    pub(crate) fn fits(&self, parameters: &BTreeMap<String, Var>, kinds: usize) -> bool {
        let Some(state) = self.0.as_ref().filter(|state| state.kinds.len() == kinds) else {
            return false;
        };
        let sizes = parameters.iter().map(|(name, parameter)| (name, parameter.elem_count()));
        state.places.iter().map(|(name, &(_, len))| (name, len)).eq(sizes)
    }

    /// What is kept of each parameter that has had a gradient; nothing where there is none.
    pub(crate) fn fetch<const KINDS: usize>(&self) -> Result<Vec<(String, [Vec<f32>; KINDS])>> {
        let Some(state) = self.0.as_ref().filter(|state| state.kinds.len() == KINDS) else {
            return Ok(Vec::new());
        };
        let kinds: Vec<Vec<f32>> =
            state.kinds.iter().map(|kind| kind.to_vec1()).collect::<Result<_>>()?;
        let seen = state.places.iter().filter(|(name, _)| state.seen.contains(*name));
        let of = |(name, &(start, len)): (&String, &(usize, usize))| {
            let values = std::array::from_fn(|kind| kinds[kind][start..start + len].to_vec());
            (name.clone(), values)
        };
        Ok(seen.map(of).collect())
    }

    /// The state, to be changed: copied first where a clone shares it.
    fn own(&mut self) -> Result<Option<&mut StateTensors>> {
        if let Some(shared) = &mut self.0
            && Arc::get_mut(shared).is_none()
        {
            let kinds = shared.kinds.iter().map(Tensor::copy).collect::<Result<_>>()?;
            let (places, seen) = (shared.places.clone(), shared.seen.clone());
            *shared = Arc::new(StateTensors { places, seen, kinds });
        }
        Ok(self.0.as_mut().and_then(Arc::get_mut))
    }

    /// A step of Adam, as kernels/optimizer.cu computes it. `constants` are beta1, 1 - beta1, beta2, 1 - beta2, eps and the
    /// L2 penalty, `decay` says which parameters shrink before the step; a captured step reads its scalars from the GPU's memory instead of `scalars`.
    ///
    /// # Errors
    /// When a parameter or a gradient is not f32, or their sizes differ.
    pub(crate) fn adam(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        grads: &GradStore,
        constants: [f32; 6],
        decay: WeightDecay,
        scalars: StepScalars,
    ) -> Result<()> {
        let pairs = pairs("adam", parameters, grads)?;
        let Some(state) = self.own()? else { return Ok(()) };
        let [first, second] = state.kinds.as_slice() else { bail!("adam: expected two moments") };
        let Some(pair) = pairs.first() else { return Ok(()) };
        let device = device("adam", pair.parameter)?;
        let (first, second) = (address("adam", &device, first)?, address("adam", &device, second)?);
        let captured = address_of_step();
        let StepScalars([step_size, root, shrinks_by, _]) = scalars;
        let start = |name: &str| state.places.get(name).map_or(0, |place| place.0);
        state.seen.extend(pairs.iter().map(|pair| pair.name.to_string()));
        let (shrinking, others): (Vec<_>, Vec<_>) =
            pairs.into_iter().partition(|pair| match decay {
                WeightDecay::L2 => false,
                WeightDecay::Decoupled => pair.parameter.rank() >= 2,
                WeightDecay::DecoupledForAll => true,
            });
        for (pairs, shrinks) in [(shrinking, 1i32), (others, 0)] {
            for table in TensorTable::of("adam", &device, &pairs, start)? {
                let function = kernel(&device, FILE, "adam", ptx::OPTIMIZER)?;
                let mut args = function.builder();
                args.arg(&table).arg(&first).arg(&second);
                for constant in &constants {
                    args.arg(constant);
                }
                args.arg(&step_size).arg(&root).arg(&shrinks_by).arg(&shrinks).arg(&captured);
                // SAFETY: the table's addresses are those of contiguous f32 tensors of the sizes given; `fits` has
                // seen to it that the moments have a place for each parameter. Nothing on the host reads what is
                // written, and what reads it on the GPU comes later on the stream.
                unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
            }
        }
        Ok(())
    }

    /// A step of SGD, as kernels/optimizer.cu computes it; `constants` and `scalars` as for Adam.
    ///
    /// # Errors
    /// As for Adam.
    pub(crate) fn sgd(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        grads: &GradStore,
        constants: SgdConstants,
        scalars: StepScalars,
    ) -> Result<()> {
        let pairs = pairs("sgd", parameters, grads)?;
        let Some(state) = self.own()? else { return Ok(()) };
        let Some(pair) = pairs.first() else { return Ok(()) };
        let device = device("sgd", pair.parameter)?;
        let SgdConstants { momentum, nesterov, weight_decay } = constants;
        let sums = match state.kinds.first() {
            Some(sums) if momentum > 0.0 => address("sgd", &device, sums)?,
            None if momentum > 0.0 => bail!("sgd: expected a sum of gradients"),
            _ => 0,
        };
        let nesterov = i32::from(nesterov);
        let captured = address_of_step();
        let StepScalars([lr, ..]) = scalars;
        let start = |name: &str| state.places.get(name).map_or(0, |place| place.0);
        for table in TensorTable::of("sgd", &device, &pairs, start)? {
            let function = kernel(&device, FILE, "sgd", ptx::OPTIMIZER)?;
            let mut args = function.builder();
            args.arg(&table).arg(&sums).arg(&lr).arg(&momentum).arg(&nesterov).arg(&weight_decay);
            args.arg(&captured);
            // SAFETY: as for Adam; a null pointer stands for no sums.
            unsafe { launch(args, (table.chunks(), 1), (THREADS, 1)) }?;
        }
        if sums != 0 {
            state.seen.extend(pairs.iter().map(|pair| pair.name.to_string()));
        }
        Ok(())
    }
}

/// What stays the same from one step of SGD to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdConstants {
    /// What is kept of the sum of past gradients in each step; 0 keeps none.
    pub(crate) momentum: f32,
    /// Whether the step looks one step of momentum ahead.
    pub(crate) nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub(crate) weight_decay: f32,
}
