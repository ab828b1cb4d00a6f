//! A teacher whose outputs are computed once and cached: in memory for the run, and in [files](kd_record::teacher_outputs) for the
//! next one.

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_data::Batch;
use kd_loss::Needs;

use super::{Answers, LOGITS, Teacher};
use crate::Result;

/// A teacher whose outputs, or some of them, are in memory; another teacher computes the rest for each batch.
pub struct Cached {
    /// A row for each training image, by output.
    outputs: BTreeMap<String, Tensor>,
    /// Who answers what is not cached.
    behind: Option<Box<dyn Teacher>>,
}

impl Cached {
    /// The cached outputs, `[N, ...]` by name (`logits`, or a feature place), with a row for each training image in the data's
    /// order; `behind` answers what is not among them.
    pub fn new(outputs: BTreeMap<String, Tensor>, behind: Option<Box<dyn Teacher>>) -> Self {
        Self { outputs, behind }
    }

    /// What is needed and not cached.
    fn rest(&self, needs: &Needs) -> Needs {
        let mut rest = needs.clone();
        rest.teacher.retain(|place| !self.outputs.contains_key(place));
        rest.teacher_logits &= !self.outputs.contains_key(LOGITS);
        rest
    }
}

impl Teacher for Cached {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        let rest = self.rest(needs);
        let mut answers = match &self.behind {
            Some(behind) if rest.any_teacher() => behind.answer(batch, &rest)?,
            _ => Answers::default(),
        };
        for (output, rows) in &self.outputs {
            let rows = || rows.index_select(&batch.rows, 0);
            match output.as_str() {
                LOGITS if needs.teacher_logits => answers.logits = Some(rows()?),
                place if needs.teacher.iter().any(|needed| needed == place) => {
                    answers.features.insert(place.to_string(), rows()?);
                }
                _ => {}
            }
        }
        Ok(answers)
    }

    fn not_to_be_captured(&self, needs: &Needs) -> Option<&'static str> {
        let rest = self.rest(needs);
        self.behind.as_ref().filter(|_| rest.any_teacher())?.not_to_be_captured(&rest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::Device;

    use super::*;

    /// Answers ones, and notes what it was asked.
    struct Behind(Mutex<Vec<Needs>>);

    impl Teacher for &'static Behind {
        fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
            self.0.lock().unwrap().push(needs.clone());
            let ones =
                || Tensor::ones((batch.indices.len(), 1), candle_core::DType::F32, &Device::Cpu);
            let feature = |place: &String| Ok((place.clone(), ones()?));
            let features = needs.teacher.iter().map(feature).collect::<Result<_>>()?;
            Ok(Answers { logits: Some(ones()?), features })
        }

        fn not_to_be_captured(&self, _: &Needs) -> Option<&'static str> {
            Some("it is asked on the host")
        }
    }

    fn batch(rows: &[u32]) -> Batch {
        let images = Tensor::zeros((rows.len(), 3, 1, 1), candle_core::DType::F32, &Device::Cpu);
        Batch {
            images: images.unwrap(),
            labels: Tensor::new(rows, &Device::Cpu).unwrap(),
            rows: Tensor::new(rows, &Device::Cpu).unwrap(),
            indices: rows.to_vec(),
            views: Vec::new(),
            mixed: None,
            view: 0,
        }
    }

    #[test]
    fn what_is_cached_is_looked_up_and_the_rest_is_computed() {
        let behind: &'static Behind = Box::leak(Box::new(Behind(Mutex::default())));
        let rows = Tensor::new(&[[10f32], [11.0], [12.0]], &Device::Cpu).unwrap();
        let outputs = BTreeMap::from([(LOGITS.to_string(), rows.clone()), ("a".to_string(), rows)]);
        let teacher = Cached::new(outputs, Some(Box::new(behind)));
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();

        let mut needs = Needs { teacher_logits: true, ..Needs::default() };
        let answers = teacher.answer(&batch(&[2, 0]), &needs).unwrap();
        assert_eq!(values(&answers.logits.unwrap()), [12.0, 10.0]);
        assert!(answers.features.is_empty(), "nobody needs the cached features");
        assert!(behind.0.lock().unwrap().is_empty(), "nothing was left to compute");
        assert_eq!(teacher.not_to_be_captured(&needs), None);

        needs.teacher = vec!["a".into(), "b".into()];
        let answers = teacher.answer(&batch(&[1]), &needs).unwrap();
        assert_eq!(values(&answers.logits.unwrap()), [11.0]);
        assert_eq!(values(&answers.features["a"]), [11.0]);
        assert_eq!(values(&answers.features["b"]), [1.0]);
        let rest = Needs { teacher: vec!["b".into()], ..Needs::default() };
        assert_eq!(*behind.0.lock().unwrap(), [rest]);
        assert_eq!(teacher.not_to_be_captured(&needs), Some("it is asked on the host"));
    }
}
