//! What PyTorch's numbers can't show: seeds, threads, errors, extreme values.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use kd_ops::adam::{Adam, Moments};
use kd_ops::{
    Conv2d, Conv2dConfig, DropoutKey, conv2d, conv2d_chain, dropout, linear, max_pool2d,
    max_pool2d_padded, relu, relu6,
};

const CPU: &Device = &Device::Cpu;

/// Numbers in [-1, 1) from their index.
fn numbers(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len as u32)
        .map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, CPU).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

const KEY: DropoutKey = DropoutKey { seed: 5, step: 17 };

#[test]
fn dropout_repeats_for_its_key_and_differs_for_others() -> Result<()> {
    let x = Tensor::ones((64, 256), candle_core::DType::F32, CPU)?;
    let mask = bits(&dropout(&x, 0.3, KEY, 0)?);
    assert_eq!(mask, bits(&dropout(&x, 0.3, KEY, 0)?));
    assert_ne!(mask, bits(&dropout(&x, 0.3, KEY, 1)?));
    assert_ne!(mask, bits(&dropout(&x, 0.3, DropoutKey { step: 18, ..KEY }, 0)?));
    assert_ne!(mask, bits(&dropout(&x, 0.3, DropoutKey { seed: 6, ..KEY }, 0)?));
    Ok(())
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() -> Result<()> {
    let x = Tensor::ones(100_000, candle_core::DType::F32, CPU)?;
    let y = dropout(&x, 0.1, KEY, 0)?.to_vec1::<f32>()?;
    let dropped = y.iter().filter(|&&y| y == 0.0).count();
    // Five standard deviations of a binomial count.
    assert!((9_526..=10_474).contains(&dropped), "{dropped}");
    assert!(y.iter().all(|&y| y == 0.0 || y == (1.0f64 / 0.9) as f32));
    Ok(())
}

#[test]
fn dropouts_gradient_is_its_mask() -> Result<()> {
    let x = Var::from_tensor(&Tensor::ones((8, 32), candle_core::DType::F32, CPU)?)?;
    let y = dropout(&x, 0.5, KEY, 3)?;
    let grads = y.sum_all()?.backward()?;
    assert_eq!(bits(&y), bits(grads.get(&x).unwrap()));
    Ok(())
}

/// One step through everything that works in parallel; returns the bits of values and gradients.
fn everything() -> Result<Vec<Vec<u32>>> {
    let layer = |o: usize, i: usize, max_pool2: bool| -> Result<(Var, Var, Conv2dConfig)> {
        let weight = Var::from_tensor(&(numbers(&[o, i, 3, 3]) * 0.1)?)?;
        let config = Conv2dConfig { padding: 1, relu: true, max_pool2, ..Default::default() };
        Ok((weight, Var::from_tensor(&numbers(&[o]))?, config))
    };
    let layers = [layer(16, 3, false)?, layer(24, 16, true)?, layer(8, 24, false)?];
    let x = Var::from_tensor(&numbers(&[37, 3, 12, 12]))?;
    let conv = |l: usize| Conv2d {
        weight: layers[l].0.as_tensor().clone(),
        bias: Some(layers[l].1.as_tensor().clone()),
        config: layers[l].2,
    };
    let y = conv2d_chain(&x, &[&conv(0), &conv(1)])?;
    let y = conv2d(&y, &layers[2].0, Some(layers[2].1.as_tensor()), &layers[2].2)?;
    let y = max_pool2d(&y, 2, 2)?.flatten_from(1)?;
    let weight = Var::from_tensor(&(numbers(&[301, 72]) * 0.1)?)?;
    let y = linear(&y, &weight, None, true)?;
    let loss = y.sqr()?.mean_all()?;
    let grads = loss.backward()?;
    let mut all = vec![bits(&y), bits(grads.get(&x).unwrap()), bits(grads.get(&weight).unwrap())];
    for (weight, bias, _) in &layers {
        all.extend([bits(grads.get(weight).unwrap()), bits(grads.get(bias).unwrap())]);
    }
    let mut adam = Adam::default();
    adam.step(&BTreeMap::from([("weight".to_string(), weight.clone())]), &grads)?;
    all.push(bits(&weight));
    Ok(all)
}

#[test]
fn results_are_the_same_bit_for_bit_in_every_run_and_for_every_thread_count() -> Result<()> {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(everything)
    };
    let one = with(1)?;
    assert_eq!(one, with(1)?);
    assert_eq!(one, with(2)?);
    assert_eq!(one, with(5)?);
    Ok(())
}

/// Depthwise, with several channels a group, and a padded pool; 37 images, so that parts of a batch are uneven.
fn grouped() -> Result<Vec<Vec<u32>>> {
    let x = Var::from_tensor(&numbers(&[37, 19, 9, 8]))?;
    let (depthwise, bias) =
        (Var::from_tensor(&numbers(&[19, 1, 3, 3]))?, Var::from_tensor(&numbers(&[19]))?);
    let groups = Var::from_tensor(&numbers(&[10, 4, 3, 3]))?;
    let config = Conv2dConfig { padding: 1, groups: 19, ..Default::default() };
    let y = conv2d(&x, &depthwise, Some(bias.as_tensor()), &config)?;
    let y = relu6(&(y * 9.0)?)?.narrow(1, 0, 8)?;
    let y = conv2d(&y, &groups, None, &Conv2dConfig { groups: 2, ..config })?;
    let y = max_pool2d_padded(&y, 3, 2, 1)?;
    let grads = y.sqr()?.mean_all()?.backward()?;
    let mut all = vec![bits(&y)];
    all.extend([&x, &depthwise, &bias, &groups].map(|var| bits(grads.get(var).unwrap())));
    Ok(all)
}

#[test]
fn grouped_convolutions_give_the_same_bits_for_every_thread_count() -> Result<()> {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(grouped)
    };
    let one = with(1)?;
    for threads in [1, 2, 3] {
        assert_eq!(one, with(threads)?, "{threads} threads");
    }
    Ok(())
}

#[test]
fn no_data_gradient_is_computed_for_an_input_that_is_no_variable() -> Result<()> {
    let weight = Var::from_tensor(&numbers(&[4, 3, 3, 3]))?;
    let x = numbers(&[2, 3, 8, 8]);
    let grads = conv2d(&x, &weight, None, &Conv2dConfig::default())?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_none());
    assert!(grads.get(&weight).is_some());
    Ok(())
}

#[test]
fn convolution_takes_views_as_they_are() -> Result<()> {
    // A transposed picture: strided in memory.
    let x = numbers(&[2, 8, 6, 3]).permute((0, 3, 1, 2))?;
    let weight = numbers(&[5, 3, 3, 3]);
    let config = Conv2dConfig { padding: 1, ..Default::default() };
    let strided = conv2d(&x, &weight, None, &config)?;
    let contiguous = conv2d(&x.contiguous()?, &weight, None, &config)?;
    assert_eq!(bits(&strided), bits(&contiguous));
    Ok(())
}

#[test]
fn nan_is_never_hidden() -> Result<()> {
    let x = Tensor::new(&[[[[1f32, 2.0], [f32::NAN, 3.0]]]], CPU)?;
    assert!(max_pool2d(&x, 2, 2)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
    assert!(relu(&x)?.flatten_all()?.to_vec1::<f32>()?[2].is_nan());
    assert!(relu6(&x)?.flatten_all()?.to_vec1::<f32>()?[2].is_nan());
    assert!(max_pool2d_padded(&x, 3, 2, 1)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
    let weight = Tensor::ones((1, 1, 1, 1), candle_core::DType::F32, CPU)?;
    let config = Conv2dConfig { relu: true, max_pool2: true, ..Default::default() };
    assert!(conv2d(&x, &weight, None, &config)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
    let w = Tensor::ones((1, 4), candle_core::DType::F32, CPU)?;
    let y = linear(&x.reshape((1, 4))?, &w, None, true)?;
    assert!(y.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
    Ok(())
}

#[test]
fn a_batch_of_none_gives_an_empty_result() -> Result<()> {
    let x = Tensor::zeros((0, 3, 8, 8), candle_core::DType::F32, CPU)?;
    let weight = Var::from_tensor(&numbers(&[16, 3, 3, 3]))?;
    let y = conv2d(&x, &weight, None, &Conv2dConfig::default())?;
    assert_eq!(y.dims(), [0, 16, 6, 6]);
    assert_eq!(max_pool2d(&y, 2, 2)?.dims(), [0, 16, 3, 3]);
    let weight = Var::from_tensor(&numbers(&[16, 1, 3, 3]))?;
    let depthwise = Conv2dConfig { groups: 16, ..Default::default() };
    let y = conv2d(&y, &weight, None, &depthwise)?;
    assert_eq!(y.dims(), [0, 16, 4, 4]);
    let grads = y.sum_all()?.backward()?;
    assert!(bits(grads.get(&weight).unwrap()).iter().all(|&bits| bits == 0));
    Ok(())
}

#[test]
fn adam_leaves_a_parameter_without_gradient_alone() -> Result<()> {
    let (used, unused) = (Var::from_tensor(&numbers(&[3]))?, Var::from_tensor(&numbers(&[4]))?);
    let before = bits(&unused);
    let grads = used.sqr()?.sum_all()?.backward()?;
    let parameters = BTreeMap::from([("used".to_string(), used), ("unused".to_string(), unused)]);
    let mut adam = Adam::default();
    adam.step(&parameters, &grads)?;
    assert_eq!(before, bits(&parameters["unused"]));
    assert_eq!(adam.moments.keys().collect::<Vec<_>>(), ["used"]);
    Ok(())
}

/// The error's text; fails where there is none.
fn error<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_does_not_fit_together_is_an_error_that_says_so() -> Result<()> {
    let x = numbers(&[2, 3, 8, 8]);
    let weight = numbers(&[4, 3, 3, 3]);
    let default = Conv2dConfig::default();
    let conv =
        |x: &Tensor, w: &Tensor, b: Option<&Tensor>, c: &Conv2dConfig| error(conv2d(x, w, b, c));
    assert!(conv(&x, &numbers(&[4, 5, 3, 3]), None, &default).contains("x has 3 channels"));
    assert!(conv(&x, &weight, Some(&numbers(&[5])), &default).contains("bias of shape [4]"));
    assert!(
        conv(&numbers(&[3, 8, 8]), &weight, None, &default).contains("expected x [N, I, H, W]")
    );
    assert!(conv(&x, &numbers(&[4, 3, 9, 9]), None, &default).contains("does not fit"));
    let zero = Conv2dConfig { stride: 0, ..default };
    assert!(conv(&x, &weight, None, &zero).contains("at least 1"));
    let huge = Conv2dConfig { padding: usize::MAX, ..default };
    assert!(conv(&x, &weight, None, &huge).contains("does not fit"));
    let f64 = x.to_dtype(candle_core::DType::F64)?;
    assert!(conv(&f64, &weight, None, &default).contains("f32"));
    assert!(error(conv2d_chain(&x, &[])).contains("at least one layer"));
    assert!(error(max_pool2d(&x, 9, 1)).contains("does not fit"));
    assert!(error(max_pool2d(&x, 0, 1)).contains("at least 1"));
    assert!(error(max_pool2d_padded(&x, 3, 2, 2)).contains("at most half the 3x3 window, got 2"));
    assert!(error(max_pool2d_padded(&x, 11, 1, 1)).contains("fit in 8x8 with padding 1"));
    assert!(error(max_pool2d_padded(&x, usize::MAX, 1, usize::MAX)).contains("at most half"));
    let widest = max_pool2d_padded(&x, usize::MAX, 1, usize::MAX / 2)?;
    assert_eq!(widest.dims(), [2, 3, 8, 8]);
    let grouped = |groups| Conv2dConfig { groups, ..default };
    for groups in [0, 2, 5] {
        let found = conv(&x, &weight, None, &grouped(groups));
        let expected = format!("groups is {groups}; expected a number that divides the 3 channels");
        assert!(found.contains(&expected), "{found}");
    }
    let found = conv(&x, &numbers(&[6, 2, 3, 3]), None, &grouped(3));
    assert!(found.contains("each of the 3 groups has 1 of x's 3 channels"), "{found}");
    let depthwise = numbers(&[3, 1, 3, 3]);
    let found = conv(&x, &depthwise, Some(&numbers(&[4])), &grouped(3));
    assert!(found.contains("bias of shape [3], got [4]"), "{found}");
    let found = conv(&x, &numbers(&[3, 1, 9, 9]), None, &grouped(3));
    assert!(found.contains("does not fit"), "{found}");
    assert!(conv(&f64, &depthwise, None, &grouped(3)).contains("f32"));
    for wrong in [
        Conv2dConfig { padding: 1, ..default },
        Conv2dConfig { dilation: 2, ..default },
        Conv2dConfig { stride: 0, ..default },
    ] {
        let same = Conv2dConfig { same_padding: true, ..wrong };
        assert!(conv(&x, &weight, None, &same).contains("\"same\" padding goes with"));
    }
    assert!(error(dropout(&x, 1.0, KEY, 0)).contains("[0, 1)"));
    assert!(error(dropout(&x, f64::NAN, KEY, 0)).contains("[0, 1)"));
    assert!(error(linear(&numbers(&[2, 3]), &numbers(&[5, 4]), None, false)).contains("x has 3"));

    let parameter = Var::from_tensor(&numbers(&[3]))?;
    let grads = parameter.sqr()?.sum_all()?.backward()?;
    let mut adam = Adam::default();
    adam.moments.insert("p".into(), Moments { first: vec![0.0; 2], second: vec![0.0; 3] });
    let parameters = BTreeMap::from([("p".to_string(), parameter)]);
    assert!(error(adam.step(&parameters, &grads)).contains("saved moments of p"));
    Ok(())
}

#[test]
fn relus_derivative_at_zero_is_zero() -> Result<()> {
    let x = Var::new(&[[-1f32, 0.0, 2.0]], CPU)?;
    let grads = relu(&x)?.sum(D::Minus1)?.sum_all()?.backward()?;
    assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>()?, [[0.0, 0.0, 1.0]]);
    Ok(())
}

#[test]
fn clipping_by_the_own_norm_is_clipping() -> Result<()> {
    let var = Var::from_tensor(&numbers(&[3, 5]))?;
    let parameters = BTreeMap::from([("a".to_string(), var.clone())]);
    let gradients = || (var.as_tensor() * 3.0)?.sqr()?.sum_all()?.backward();
    let (mut expected, mut found) = (gradients()?, gradients()?);
    let norms = kd_ops::grad_norms(&parameters, &expected)?;
    let norm = kd_ops::total_norm(&norms);
    kd_ops::clip_grad_norm(&parameters, &mut expected, norm, 0.5)?;
    let clipped = kd_ops::clip_grad_norm_on_device(&parameters, &mut found, 0.5)?;
    assert_eq!(clipped.total.to_scalar::<f64>()?, norm);
    let each = clipped.names.into_iter().zip(clipped.each.to_vec1::<f64>()?);
    assert_eq!(each.collect::<BTreeMap<_, _>>(), norms);
    assert_eq!(bits(found.get(&var).unwrap()), bits(expected.get(&var).unwrap()));
    kd_ops::clip_grad_norm_on_device(&parameters, &mut found, f64::INFINITY)?;
    assert_eq!(bits(found.get(&var).unwrap()), bits(expected.get(&var).unwrap()));
    Ok(())
}
