use candle_core::{D, Device, Result, Tensor, Var};
use kd_ops::{Conv2dConfig, adam::Adam, conv2d, linear};
use std::{collections::BTreeMap, time::Instant};
unsafe extern "C" {
    fn mallopt(param: i32, value: i32) -> i32;
}
fn main() -> Result<()> {
    if std::env::var("KEEP").is_ok() {
        unsafe {
            mallopt(-4, 0);
            mallopt(-1, i32::MAX);
            mallopt(-2, 64 << 20);
        }
    }
    let dev = &Device::Cpu;
    let which = std::env::args().nth(1).unwrap_or("teacher".into());
    let layers: Vec<(usize, usize, bool)> = if which == "teacher" {
        vec![(3, 128, false), (128, 64, true), (64, 64, false), (64, 32, true)]
    } else {
        vec![(3, 16, true), (16, 16, true)]
    };
    let (f, h) = if which == "teacher" { (2048, 512) } else { (1024, 256) };
    let mut p: BTreeMap<String, Var> = BTreeMap::new();
    let mk = |shape: &[usize], b: f64| -> Result<Var> {
        Var::from_tensor(&(Tensor::rand(-1f32, 1f32, shape, dev)? * b)?)
    };
    for (i, (a, b, _)) in layers.iter().enumerate() {
        let s = 1.0 / ((a * 9) as f64).sqrt();
        p.insert(format!("c{i}.w"), mk(&[*b, *a, 3, 3], s)?);
        p.insert(format!("c{i}.b"), mk(&[*b], s)?);
    }
    for (n, i, o) in [("l0", f, h), ("l1", h, 10)] {
        let s = 1.0 / (i as f64).sqrt();
        p.insert(format!("{n}.w"), mk(&[o, i], s)?);
        p.insert(format!("{n}.b"), mk(&[o], s)?);
    }
    let x = Tensor::rand(-1f32, 1f32, (128, 3, 32, 32), dev)?;
    let y = Tensor::arange(0u32, 128, dev)?
        .to_vec1::<u32>()?
        .iter()
        .map(|v| v % 10)
        .collect::<Vec<_>>();
    let y = Tensor::from_vec(y, 128, dev)?;
    let mut adam = Adam::new(Default::default());
    let mut best = [f64::MAX; 4];
    for it in 0..std::env::args().nth(2).map_or(12, |n| n.parse().unwrap()) {
        let t0 = Instant::now();
        let mut z = x.clone();
        let mut marks = vec![];
        let mk = |i: usize| kd_ops::Conv2d {
            weight: p[&format!("c{i}.w")].as_tensor().clone(),
            bias: Some(p[&format!("c{i}.b")].as_tensor().clone()),
            config: Conv2dConfig {
                padding: 1,
                relu: true,
                max_pool2: layers[i].2,
                ..Default::default()
            },
        };
        let chain = which == "teacher" && std::env::var("CHAIN").is_ok();
        if chain {
            let t = Instant::now();
            z = kd_ops::conv2d_chain(&z, &[&mk(0), &mk(1)])?;
            marks.push(t.elapsed().as_secs_f64() * 1e3);
        }
        for (i, (_, _, pool)) in layers.iter().enumerate().skip(if chain { 2 } else { 0 }) {
            let _ = (i, pool);
        }
        for (i, (_, _, pool)) in layers.iter().enumerate().skip(if chain { 2 } else { 0 }) {
            let t = Instant::now();
            let cfg =
                Conv2dConfig { padding: 1, relu: true, max_pool2: *pool, ..Default::default() };
            z = conv2d(
                &z,
                p[&format!("c{i}.w")].as_tensor(),
                Some(p[&format!("c{i}.b")].as_tensor()),
                &cfg,
            )?;
            marks.push(t.elapsed().as_secs_f64() * 1e3);
        }
        let z = z.flatten_from(1)?;
        let z = linear(&z, p["l0.w"].as_tensor(), Some(p["l0.b"].as_tensor()), true)?;
        let z = linear(&z, p["l1.w"].as_tensor(), Some(p["l1.b"].as_tensor()), false)?;
        let fwd = t0.elapsed().as_secs_f64();
        let lp = candle_nn::ops::log_softmax(&z, D::Minus1)?;
        let loss = candle_nn::loss::nll(&lp, &y)?;
        let t1 = Instant::now();
        let g = loss.backward()?;
        let bwd = t1.elapsed().as_secs_f64();
        let t2 = Instant::now();
        adam.step(&p, &g)?;
        let ad = t2.elapsed().as_secs_f64();
        let all = t0.elapsed().as_secs_f64();
        for (b, v) in best.iter_mut().zip([all, fwd, bwd, ad]) {
            *b = b.min(v);
        }
        if it < 2 {
            println!("{marks:?}");
        }
    }
    println!(
        "{which} best ms: all {:.2} fwd {:.2} bwd {:.2} adam {:.2}",
        best[0] * 1e3,
        best[1] * 1e3,
        best[2] * 1e3,
        best[3] * 1e3
    );
    Ok(())
}
