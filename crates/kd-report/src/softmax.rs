//! Softmax, entropy and divergence of rows of logits, computed in f64.

/// Softmax of one row of logits divided by a temperature: the probabilities by class.
pub fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = f64::from(logits[argmax(logits)]);
    let shifted = |logit: &f32| ((f64::from(*logit) - largest) / temperature).exp();
    let mut shares: Vec<f64> = logits.iter().map(shifted).collect();
    let sum: f64 = shares.iter().sum();
    for share in &mut shares {
        *share /= sum;
    }
    shares
}

/// The largest logit's class; of equal ones the first.
pub fn argmax(logits: &[f32]) -> usize {
    let better = |best, class| if logits[class] > logits[best] { class } else { best };
    (0..logits.len()).reduce(better).unwrap_or(0)
}

/// In nats.
pub fn entropy(shares: &[f64]) -> f64 {
    -shares.iter().filter(|share| **share > 0.0).map(|share| share * share.ln()).sum::<f64>()
}

/// KL(q || p) of the softmaxes of two rows of logits, in nats.
pub fn divergence(q_logits: &[f32], p_logits: &[f32]) -> f64 {
    let (q, log_q) = (softmax(q_logits, 1.0), log_softmax(q_logits));
    let log_p = log_softmax(p_logits);
    q.iter().zip(log_q.iter().zip(&log_p)).map(|(q, (log_q, log_p))| q * (log_q - log_p)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits[argmax(logits)]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - largest - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_entropy_and_divergence_are_the_formulas() {
        // softmax(ln 1, ln 2, ln 5) = 1/8, 2/8, 5/8.
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln()];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        let shares = softmax(&logits, 1.0);
        shares.iter().zip([0.125, 0.25, 0.625]).for_each(|(a, b)| close(*a, b));
        // At T = 2 the square roots.
        let sum = 1.0 + 2f64.sqrt() + 5f64.sqrt();
        close(softmax(&logits, 2.0)[2], 5f64.sqrt() / sum);
        close(entropy(&shares), 0.125 * 8f64.ln() + 0.25 * 4f64.ln() - 0.625 * 0.625f64.ln());
        close(entropy(&[1.0, 0.0]), 0.0);
        let uniform = [0.0; 3];
        close(divergence(&logits, &uniform), 3f64.ln() - entropy(&shares));
        close(divergence(&logits, &logits), 0.0);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert!(softmax(&[1000.0, -1000.0], 1.0).iter().all(|share| share.is_finite()));
    }
}
