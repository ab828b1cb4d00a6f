//! Several teachers, of any networks, that answer as one.

use candle_core::Device;
use kd_data::Batch;
use kd_loss::{Combination, Needs};
use kd_record::hash::hex;
use sha2::{Digest, Sha256};

use super::{Answers, LOGITS, NetworkTeacher, Pretrained, Teacher};
use crate::error::other;
use crate::{Error, Result};

/// A teacher that asks several networks about each batch and combines their logits.
pub struct Ensemble {
    members: Vec<NetworkTeacher>,
    combination: Combination,
}

impl Ensemble {
    /// The networks of [`Pretrained::ensemble`].
    ///
    /// # Errors
    /// When feature maps are needed, which are not comparable between networks, or the device fails.
    pub fn new(teacher: &Pretrained, needs: &Needs, device: &Device) -> Result<Self> {
        refuse_features(needs, teacher.members.len())?;
        let members = teacher.members.iter().map(|member| NetworkTeacher::of(member, device));
        Ok(Self { members: members.collect::<Result<_>>()?, combination: teacher.combination })
    }
}

fn refuse_features(needs: &Needs, teachers: usize) -> Result<()> {
    match needs.teacher.is_empty() {
        true => Ok(()),
        false => Err(other!(
            "the soft targets come from {teachers} teachers, whose feature maps are not each other's; a method asks for {}: use methods that need the teachers' logits alone, or one teacher",
            needs.teacher.join(", ")
        )),
    }
}

impl Teacher for Ensemble {
    fn answer(&self, batch: &Batch, needs: &Needs) -> Result<Answers> {
        refuse_features(needs, self.members.len())?;
        if !needs.teacher_logits {
            return Ok(Answers::default());
        }
        let of = |member: &NetworkTeacher| Ok(member.answer(batch, needs)?.get(LOGITS)?.clone());
        let logits = self.members.iter().map(of).collect::<Result<Vec<_>>>()?;
        let combined = self.combination.combine(&logits, &batch.labels);
        Ok(Answers { logits: Some(combined.map_err(anyhow::Error::from)?), ..Answers::default() })
    }

    fn not_to_be_captured(&self, needs: &Needs) -> Option<&'static str> {
        needs.teacher_logits.then_some("several teachers' logits are combined in it")
    }
}

impl Pretrained {
    /// Several networks that teach as one: each answers about each image, and their logits are combined.
    ///
    /// # Errors
    /// When there are none, or two are the same file.
    pub fn ensemble(members: Vec<Self>, combination: Combination) -> Result<Self> {
        let Some(first) = members.first() else {
            return Err(other!("an ensemble needs at least one teacher"));
        };
        for (place, member) in members.iter().enumerate() {
            if let Some(same) = members[..place].iter().find(|it| it.sha256 == member.sha256) {
                return Err(Error::unfit(format!(
                    "{} and {}: both teachers are the same weights; expected each teacher once",
                    same.path.display(),
                    member.path.display()
                )));
            }
        }
        let (mut hash, mut identity) = (Sha256::new(), Sha256::new());
        for member in &members {
            hash.update(&member.sha256);
            identity.update(&member.identity);
        }
        identity.update(format!("{combination:?}"));
        Ok(Self {
            path: first.path.clone(),
            sha256: hex(hash),
            config: first.config,
            foreign: first.foreign.clone(),
            tensors: first.tensors.clone(),
            left_out: None,
            parts: Vec::new(),
            normalization: first.normalization,
            renormalize: first.renormalize,
            identity: hex(identity),
            notes: members.iter().flat_map(|member| member.notes.clone()).collect(),
            members,
            combination,
        })
    }

    /// The networks that answer: one, or those of an ensemble.
    pub(crate) fn answering(&self) -> &[Self] {
        if self.members.is_empty() { std::slice::from_ref(self) } else { &self.members }
    }
}
