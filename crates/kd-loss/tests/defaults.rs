//! The list's weights and the options' defaults beside the configurations that they are taken from. The numbers here were read in the files that
//! `About::source` names, not in this crate.

use kd_loss::{METHODS, MethodConfig};
use serde_json::{Value, json};

/// Method, its weight, the labels' weight, the options that have numbers, and what its source must name.
fn configurations() -> Vec<(&'static str, f64, f64, Value, &'static [&'static str])> {
    const TUTORIAL: &[&str] =
        &["pytorch/tutorials", "beginner_source/knowledge_distillation_tutorial.py"];
    const COMPARED: &[&str] = &["HobbitLong/RepDistiller", "scripts/run_cifar_distill.sh"];
    let none = || json!({});
    vec![
        // T=2, soft_target_loss_weight=0.25, ce_loss_weight=0.75
        ("kd", 0.25, 0.75, json!({ "temperature": 2.0 }), TUTORIAL),
        // CFG.DKD: CE_WEIGHT = 1.0, ALPHA = 1.0, BETA = 8.0, T = 4.0
        (
            "dkd",
            1.0,
            1.0,
            json!({ "temperature": 4.0, "alpha": 1.0, "beta": 8.0 }),
            &["megvii-research/mdistiller", "mdistiller/engine/cfg.py"],
        ),
        // kd: dist_t4, kd_loss_weight: 2., ori_loss_weight: 1.; DIST(beta=1, gamma=1, tau=tau)
        (
            "dist",
            2.0,
            1.0,
            json!({ "temperature": 4.0, "beta": 1.0, "gamma": 1.0 }),
            &["hunto/image_classification_sota", "dist_cifar.yaml", "resnet_dist.yaml"],
        ),
        // CFG.KD: TEMPERATURE = 4, CE_WEIGHT = 0.1, KD_WEIGHT = 0.9; KD_ours.py: 3.0, 5.0, 2.0, 6.0
        (
            "mlkd",
            0.9,
            0.1,
            json!({ "temperatures": [4.0, 3.0, 5.0, 2.0, 6.0], "instance": 1.0, "batch": 1.0, "class": 1.0 }),
            &["Jin-Ying/Multi-Level-Logit-Distillation", "KD_ours.py", "Departure"],
        ),
        // --distill ttm --ttm_l 0.1 -r 1 -b 45
        ("ttm", 45.0, 1.0, json!({ "gamma": 0.1 }), &["zkxufo/TTM", "README.md"]),
        // --add wttm --ttm_l 0.2 -a 4
        ("wttm", 4.0, 1.0, json!({ "gamma": 0.2 }), &["zkxufo/TTM", "README.md"]),
        // hidden_rep_loss_weight=0.25, ce_loss_weight=0.75
        ("cosine", 0.25, 0.75, none(), TUTORIAL),
        // feature_map_weight=0.25, ce_loss_weight=0.75
        ("regressor", 0.25, 0.75, none(), TUTORIAL),
        // --distill hint -a 0 -b 100
        ("fitnet", 100.0, 1.0, none(), COMPARED),
        // --beta 1e+3
        (
            "attention-transfer",
            1000.0,
            1.0,
            none(),
            &["szagoruyko/attention-transfer", "README.md"],
        ),
        // mmd_kernel = 'poly', kt_weight 50
        ("nst", 50.0, 1.0, none(), &["TuSimple/neuron-selectivity-transfer", "config/cfgs.py"]),
        // --distill fsp -b 50, which is multiplied by 0 there
        ("fsp", 50.0, 1.0, none(), &["nobody's", "helper/loops.py"]),
        // --distill vid -a 0 -b 1
        ("vid", 1.0, 1.0, none(), COMPARED),
        // --distill factor -a 0 -b 200, Paraphraser(k=0.5); the reconstruction, trained alone there, counts 200 * 0.005
        (
            "factor-transfer",
            200.0,
            1.0,
            json!({ "rate": 0.5, "reconstruction": 0.005 }),
            &["HobbitLong/RepDistiller", "scripts/run_cifar_distill.sh", "kd_losses/ft.py"],
        ),
        // margin=1.0; l / 1000 * 3
        (
            "activation-boundaries",
            0.003,
            1.0,
            json!({ "margin": 1.0 }),
            &["HobbitLong/RepDistiller", "distiller_zoo/AB.py", "Departures"],
        ),
        // loss_distill.sum() / batch_size / 1000
        (
            "ofd",
            0.001,
            1.0,
            none(),
            &["clovaai/overhaul-distillation", "train_with_distillation.py", "Departures"],
        ),
        // --kd-loss-weight default=1.0, --ce-loss-weight default=1.0
        ("reviewkd", 1.0, 1.0, none(), &["dvlab-research/ReviewKD", "train.py", "Departures"]),
        // w_d=25, w_a=50, --distill rkd -a 0 -b 1
        ("rkd-distance", 25.0, 1.0, none(), &["HobbitLong/RepDistiller", "distiller_zoo/RKD.py"]),
        ("rkd-angle", 50.0, 1.0, none(), &["HobbitLong/RepDistiller", "distiller_zoo/RKD.py"]),
        // --distill similarity -a 0 -b 3000
        ("similarity-preserving", 3000.0, 1.0, none(), COMPARED),
        // --kd_mode cc --lambda_kd 100.0 --gamma 0.4 --P_order 2
        (
            "correlation-congruence",
            100.0,
            1.0,
            json!({ "gamma": 0.4, "order": 2 }),
            &["AberHu/Knowledge-Distillation-Zoo", "example_train_script.sh"],
        ),
        // --distill pkt -a 0 -b 30000
        ("pkt", 30_000.0, 1.0, none(), COMPARED),
        // --distill crd -a 0 -b 0.8, nce_t 0.07, nce_m 0.5, feat_dim 128; of nce_k 16384 the source says why there are fewer
        (
            "crd",
            0.8,
            1.0,
            json!({ "temperature": 0.07, "momentum": 0.5, "dim": 128, "negatives": 1024 }),
            &["HobbitLong/RepDistiller", "scripts/run_cifar_distill.sh", "16384"],
        ),
        // epsilon = 0.1
        ("label-smoothing", 1.0, 0.0, json!({ "smoothing": 0.1 }), &["Szegedy et al. 2016"]),
    ]
}

#[test]
fn every_default_is_that_of_the_configuration_that_it_names() {
    let configurations = configurations();
    assert_eq!(configurations.len(), METHODS.len());
    for (info, (name, weight, labels, options, source)) in METHODS.iter().zip(configurations) {
        assert_eq!(info.name, name);
        assert_eq!((info.about.weight, info.about.labels), (weight, labels), "{name}");
        let mut found = serde_json::to_value(MethodConfig::from_name(name).unwrap()).unwrap();
        found.as_object_mut().unwrap().remove("name");
        assert_eq!(found, options, "{name}");
        for part in source {
            assert!(info.about.source.contains(part), "{name}: {}", info.about.source);
        }
    }
}

/// The weight of correlation congruence makes it a part of the loss: on random features, beside the labels' gradient of about 1 / sqrt(B C)
/// a logit, that of 0.02 was 1e-5.
#[test]
fn no_methods_weighted_gradient_is_nothing() {
    use candle_core::{DType, Device, Tensor, Var};
    let numbers = |shape: (usize, usize), step: f64| -> candle_core::Result<Tensor> {
        let values = (0..shape.0 * shape.1).map(|i| (i as f64 * step).sin().max(0.0)).collect();
        Tensor::from_vec::<_, f64>(values, shape, &Device::Cpu)?.to_dtype(DType::F32)
    };
    let student = Var::from_tensor(&numbers((64, 256), 12.9898).unwrap()).unwrap();
    let teacher = numbers((64, 512), 78.233).unwrap();
    let weight = METHODS.iter().find(|info| info.name == "correlation-congruence").unwrap();
    let loss = kd_loss::correlation_congruence(&student, &teacher, 0.4, 2).unwrap();
    let gradients = (loss * weight.about.weight).unwrap().backward().unwrap();
    let squares = gradients.get(&student).unwrap().sqr().unwrap().sum_all().unwrap();
    let length = squares.to_scalar::<f32>().unwrap().sqrt();
    assert!((1e-3..10.0).contains(&length), "{length}");
}
