//! A teacher whose logits of augmented views are kept in a [file](kd_record::kept_views) and read row by row; what is not there yet
//! is asked of another teacher and written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::Tensor;
use kd_data::Batch;
use kd_loss::Needs;
use kd_record::KeptViews;

use super::{Answers, LOGITS, Teacher};
use crate::{Error, Result};

/// A teacher that keeps its logits of views.
///
/// What it answers is what the file holds, also where the row has just been computed: answers don't depend on what was there before.
pub struct Kept {
    behind: Box<dyn Teacher>,
    used: Arc<Used>,
}

/// A file of kept views, and how it was used by this process.
#[derive(Debug)]
pub struct Used {
    /// Where the logits are kept, and how.
    pub file: KeptViews,
    /// Rows that were asked for.
    asked: AtomicU64,
    /// Rows of them that were there.
    found: AtomicU64,
    begun: Instant,
}

impl Kept {
    /// A teacher that keeps in `file` what `behind` says.
    pub fn new(file: KeptViews, behind: Box<dyn Teacher>) -> Self {
        let (asked, found) = Default::default();
        let used = Used { file, asked, found, begun: Instant::now() };
        Self { behind, used: Arc::new(used) }
    }

    /// The file and its use.
    pub fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// The logits of a batch from the teacher behind, as rows of the file.
    fn compute(&self, batch: &Batch) -> Result<Vec<Vec<u8>>> {
        let needs = Needs { teacher_logits: true, ..Needs::default() };
        let logits = self.behind.answer(batch, &needs)?;
        let logits = logits.get(LOGITS)?.to_vec2::<f32>()?;
        let encode = |(logits, image): (&Vec<f32>, &u32)| {
            self.used.file.keep.encode(logits).map_err(|reason| {
                Error::unfit(format!(
                    "the teacher's logits for view {} of training image {image} can't be kept: {reason}",
                    batch.view
                ))
            })
        };
        logits.iter().zip(&batch.indices).map(encode).collect()
    }

    /// Makes sure that the batch's rows are in the file; how many were computed for it.
    pub(crate) fn fill(&self, batch: &Batch) -> Result<usize> {
        Ok(self.rows(batch)?.1)
    }

    /// The kept logits of a batch's images, after those that were missing have been computed and written; and how many were.
    fn rows(&self, batch: &Batch) -> Result<(Vec<Option<Vec<f32>>>, usize)> {
        let file = &self.used.file;
        let mut rows = file.read(batch.view, &batch.indices)?;
        let missing = rows.iter().filter(|row| row.is_none()).count();
        if missing > 0 {
            let computed = self.compute(batch)?;
            let places = rows.iter_mut().zip(&computed).zip(&batch.indices);
            for ((row, bytes), &image) in places.filter(|((row, _), _)| row.is_none()) {
                file.write(batch.view, image, bytes)?;
                *row = file.keep.decode(bytes, file.classes);
            }
        }
        Ok((rows, missing))
    }

    /// Computes the rows of a batch that are kept again: of each the kept logits and those of now.
    pub(crate) fn again(&self, batch: &Batch) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let file = &self.used.file;
        let kept = file.read(batch.view, &batch.indices)?;
        let rows = self.compute(batch)?;
        let pairs = kept
            .into_iter()
            .zip(rows)
            .filter_map(|(kept, row)| Some((kept?, file.keep.decode(&row, file.classes)?)));
        Ok(pairs.collect())
    }
}

impl Teacher for Kept {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        if !needs.any_teacher() {
            return Ok(Answers::default());
        }
        let (rows, missing) = self.rows(batch)?;
        self.used.asked.fetch_add(rows.len() as u64, Ordering::Relaxed);
        self.used.found.fetch_add((rows.len() - missing) as u64, Ordering::Relaxed);
        let values: Vec<f32> = rows.into_iter().flatten().flatten().collect();
        let shape = (batch.indices.len(), self.used.file.classes);
        let logits = Tensor::from_vec(values, shape, batch.images.device())?;
        Ok(Answers { logits: Some(logits), ..Answers::default() })
    }

    fn not_to_be_captured(&self, _: &Needs) -> Option<&'static str> {
        Some("kept views are read on the host")
    }
}

impl Used {
    /// The file, its size and how much of it is there, as a sentence.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn before(&self) -> Result<String> {
        let file = &self.file;
        let (rows, there) = ((file.views * file.images) as u64, file.count()?);
        Ok(format!(
            "kept views: {} images in {} views, {} bytes a row, {:.1} MiB in {}; {there} of {rows} rows are there",
            file.images,
            file.views,
            file.keep.row_bytes(file.classes),
            file.bytes() as f64 / f64::from(1 << 20),
            file.path.display()
        ))
    }

    /// How often the file had what was asked for, as a sentence; `None` where nothing was asked.
    pub fn after(&self) -> Option<String> {
        let (asked, found) =
            (self.asked.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed));
        (asked > 0).then(|| {
            format!(
                "kept views: {found} of {asked} rows were read from the file ({:.1} %), the others asked of the teacher, in {:.0} s",
                100.0 * found as f64 / asked as f64,
                self.begun.elapsed().as_secs_f64()
            )
        })
    }
}
