//! Every operation against what PyTorch computes for the same numbers: values and gradients.
//! `parity/make_fixtures.py` writes the fixtures and holds the PyTorch lines.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::{Device, Result, Tensor, Var, safetensors};
use kd_ops::adam::{Adam, AdamConfig, WeightDecay};
use kd_ops::average::{Average, AverageConfig};
use kd_ops::sgd::{Sgd, SgdConfig};
use kd_ops::{
    BatchNorm, BatchNormConfig, Conv2dConfig, Statistics, clip_grad_norm, conv2d, grad_norms,
    linear, max_pool2d, max_pool2d_padded, relu, relu6, subsample_pad, total_norm,
};

struct Fixture(HashMap<String, Tensor>);

impl Fixture {
    fn load(name: &str) -> Result<Self> {
        let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Ok(Self(safetensors::load(path, &Device::Cpu)?))
    }

    /// The names before the first dot.
    fn cases(&self) -> BTreeSet<String> {
        self.0.keys().filter_map(|key| Some(key.split_once('.')?.0.to_string())).collect()
    }

    fn get(&self, case: &str, name: &str) -> &Tensor {
        self.0.get(&format!("{case}.{name}")).unwrap_or_else(|| panic!("no {case}.{name}"))
    }

    fn var(&self, case: &str, name: &str) -> Result<Var> {
        Var::from_tensor(self.get(case, name))
    }

    fn config(&self, case: &str) -> Result<Vec<usize>> {
        let config = self.get(case, "config").to_vec1::<i64>()?;
        Ok(config.into_iter().map(|value| value as usize).collect())
    }

    /// Fails unless `found` is the fixture's tensor, to 1e-5 of its largest magnitude.
    fn assert_close(&self, case: &str, name: &str, found: &Tensor) -> Result<()> {
        let expected = self.get(case, name);
        assert_eq!(found.dims(), expected.dims(), "{case}.{name}");
        let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1e-20);
        let difference = (found - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference <= 1e-5 * largest, "{case}.{name} is off by {difference} of {largest}");
        Ok(())
    }

    /// Compares `y` and the gradients of `variables` (by name) for the fixture's `dy`.
    fn check(&self, case: &str, y: &Tensor, variables: &[(&str, &Var)]) -> Result<()> {
        self.assert_close(case, "y", y)?;
        let grads = (y * self.get(case, "dy"))?.sum_all()?.backward()?;
        for (name, variable) in variables {
            let Some(grad) = grads.get(variable) else { panic!("{case}: no gradient of {name}") };
            self.assert_close(case, &format!("d{name}"), grad)?;
        }
        Ok(())
    }
}

#[test]
fn conv2d_agrees() -> Result<()> {
    let fixture = Fixture::load("conv2d")?;
    assert!(fixture.cases().len() >= 14);
    for case in &fixture.cases() {
        let [stride, padding, dilation, relu] = fixture.config(case)?[..] else { panic!("{case}") };
        let config =
            Conv2dConfig { stride, padding, dilation, relu: relu == 1, ..Default::default() };
        let x = fixture.var(case, "x")?;
        let (weight, bias) = (fixture.var(case, "weight")?, fixture.var(case, "bias")?);
        let y = conv2d(&x, &weight, Some(bias.as_tensor()), &config)?;
        fixture.check(case, &y, &[("x", &x), ("weight", &weight), ("bias", &bias)])?;
    }
    Ok(())
}

#[test]
fn grouped_depthwise_and_same_padded_conv2d_agree() -> Result<()> {
    let fixture = Fixture::load("conv2d_groups")?;
    assert!(fixture.cases().len() >= 15);
    for case in &fixture.cases() {
        let [stride, padding, dilation, relu, groups, same] = fixture.config(case)?[..] else {
            panic!("{case}")
        };
        let (relu, same_padding) = (relu == 1, same == 1);
        let config = Conv2dConfig {
            stride,
            padding,
            same_padding,
            groups,
            dilation,
            relu,
            ..Default::default()
        };
        let x = fixture.var(case, "x")?;
        let (weight, bias) = (fixture.var(case, "weight")?, fixture.var(case, "bias")?);
        let y = conv2d(&x, &weight, Some(bias.as_tensor()), &config)?;
        fixture.check(case, &y, &[("x", &x), ("weight", &weight), ("bias", &bias)])?;
    }
    Ok(())
}

#[test]
fn conv2d_with_relu_and_pool_agrees() -> Result<()> {
    let fixture = Fixture::load("conv2d_relu_max_pool2")?;
    for case in &fixture.cases() {
        let config = Conv2dConfig { padding: 1, relu: true, max_pool2: true, ..Default::default() };
        let x = fixture.var(case, "x")?;
        let (weight, bias) = (fixture.var(case, "weight")?, fixture.var(case, "bias")?);
        let y = conv2d(&x, &weight, Some(bias.as_tensor()), &config)?;
        fixture.check(case, &y, &[("x", &x), ("weight", &weight), ("bias", &bias)])?;
    }
    Ok(())
}

#[test]
fn max_pool2d_agrees_also_on_ties() -> Result<()> {
    let fixture = Fixture::load("max_pool2d")?;
    for case in &fixture.cases() {
        let [kernel, stride, padding] = fixture.config(case)?[..] else { panic!("{case}") };
        let x = fixture.var(case, "x")?;
        fixture.check(case, &max_pool2d_padded(&x, kernel, stride, padding)?, &[("x", &x)])?;
        if padding == 0 {
            fixture.check(case, &max_pool2d(&x, kernel, stride)?, &[("x", &x)])?;
        }
    }
    Ok(())
}

#[test]
fn linear_and_relu_agree() -> Result<()> {
    let fixture = Fixture::load("linear")?;
    for case in fixture.cases().iter().filter(|case| !case.ends_with("_only")) {
        let with_relu = fixture.config(case)? == [1];
        let x = fixture.var(case, "x")?;
        let (weight, bias) = (fixture.var(case, "weight")?, fixture.var(case, "bias")?);
        let y = linear(&x, &weight, Some(bias.as_tensor()), with_relu)?;
        fixture.check(case, &y, &[("x", &x), ("weight", &weight), ("bias", &bias)])?;
    }
    let x = fixture.var("relu_only", "x")?;
    fixture.check("relu_only", &relu(&x)?, &[("x", &x)])?;
    let x = fixture.var("relu6_only", "x")?;
    fixture.check("relu6_only", &relu6(&x)?, &[("x", &x)])
}

#[test]
fn adam_agrees_step_by_step() -> Result<()> {
    let fixture = Fixture::load("adam")?;
    for case in &fixture.cases() {
        let config = fixture.get(case, "config").to_dtype(candle_core::DType::F64)?;
        let [lr, beta1, beta2, eps, weight_decay] = config.to_vec1::<f64>()?[..] else {
            panic!("{case}")
        };
        let parameter = fixture.var(case, "start")?;
        let parameters = BTreeMap::from([("p".to_string(), parameter.clone())]);
        let mut adam =
            Adam::new(AdamConfig { lr, beta1, beta2, eps, weight_decay, ..AdamConfig::default() });
        for step in 0..5 {
            let grad = fixture.get(case, &format!("grad.{step}"));
            let grads = (parameter.as_tensor() * grad)?.sum_all()?.backward()?;
            adam.step(&parameters, &grads)?;
            fixture.assert_close(case, &format!("parameter.{step}"), &parameter)?;
        }
        let moments = &adam.moments["p"];
        let tensor = |v: &[f32]| Tensor::from_slice(v, parameter.shape(), &Device::Cpu);
        fixture.assert_close(case, "first", &tensor(&moments.first)?)?;
        fixture.assert_close(case, "second", &tensor(&moments.second)?)?;
    }
    Ok(())
}

#[test]
fn adamw_agrees_step_by_step_with_and_without_a_decay_of_biases() -> Result<()> {
    let fixture = Fixture::load("adamw")?;
    for (case, decay) in
        [("all", WeightDecay::DecoupledForAll), ("matrices", WeightDecay::Decoupled)]
    {
        let config = fixture.get(case, "config").to_vec1::<f64>()?;
        let [lr, beta1, beta2, eps, weight_decay] = config[..] else { panic!("{case}") };
        let var = |name: &str| Ok((name.to_string(), fixture.var(case, &format!("start.{name}"))?));
        let parameters: BTreeMap<String, Var> =
            [var("matrix"), var("bias")].into_iter().collect::<Result<_>>()?;
        let mut adam = Adam::new(AdamConfig { lr, beta1, beta2, eps, weight_decay, decay });
        for step in 0..4 {
            let mut sum = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
            for (name, parameter) in &parameters {
                let grad = fixture.get(case, &format!("grad.{name}.{step}"));
                sum = (sum + (parameter.as_tensor() * grad)?.sum_all()?)?;
            }
            adam.step(&parameters, &sum.backward()?)?;
            for (name, parameter) in &parameters {
                fixture.assert_close(case, &format!("parameter.{name}.{step}"), parameter)?;
            }
        }
    }
    Ok(())
}

#[test]
fn averages_are_timms_and_pytorchs() -> Result<()> {
    let fixture = Fixture::load("averages")?;
    let names = ["weight", "bias", "running_mean", "running_var"];
    let configs = [
        ("ema", AverageConfig::Ema { decay: 0.6, warmup: false }),
        ("ema_warmup", AverageConfig::Ema { decay: 0.6, warmup: true }),
        ("mean", AverageConfig::LastEpochs { epochs: 5 }),
    ];
    for (case, config) in configs {
        let var = |name: &str| {
            Ok((name.to_string(), Var::zeros(5, candle_core::DType::F32, &Device::Cpu)?))
        };
        let parameters: BTreeMap<String, Var> =
            names.into_iter().map(var).collect::<Result<_>>()?;
        let mut average = Average::new(config, &parameters)?;
        for step in 0..5 {
            for name in names {
                parameters[name].set(fixture.get("values", &format!("{name}.{step}")))?;
            }
            // A step is an epoch here: each config knows one of the two.
            let now = step + 1;
            average.approach(&parameters, config.weight_after_step(now as u64))?;
            average.approach(&parameters, config.weight_after_epoch(now, 5))?;
            for name in names {
                let found = average.values[name].as_tensor();
                fixture.assert_close(case, &format!("{name}.{step}"), found)?;
            }
        }
    }
    Ok(())
}

#[test]
fn clipped_gradients_agree() -> Result<()> {
    let fixture = Fixture::load("clipping")?;
    for case in &fixture.cases() {
        let names = ["a", "b", "c"];
        let mut parameters = BTreeMap::new();
        let mut sum = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        for name in names {
            let grad = fixture.get(case, &format!("grad.{name}"));
            let parameter = Var::zeros(grad.shape(), candle_core::DType::F32, &Device::Cpu)?;
            sum = (sum + (parameter.as_tensor() * grad)?.sum_all()?)?;
            parameters.insert(name.to_string(), parameter);
        }
        let mut grads = sum.backward()?;
        let norm = total_norm(&grad_norms(&parameters, &grads)?);
        let expected = f64::from(fixture.get(case, "norm").to_scalar::<f32>()?);
        assert!((norm - expected).abs() <= 1e-6 * expected, "{case}: {norm}, {expected}");
        let max_norm = fixture.get(case, "max_norm").to_scalar::<f64>()?;
        clip_grad_norm(&parameters, &mut grads, norm, max_norm)?;
        for name in names {
            let Some(grad) = grads.get(&parameters[name]) else { panic!("{case}: {name} is gone") };
            fixture.assert_close(case, &format!("clipped.{name}"), grad)?;
        }
    }
    Ok(())
}

#[test]
fn batch_norm_agrees_in_training_and_evaluation() -> Result<()> {
    let fixture = Fixture::load("batch_norm")?;
    let cases: Vec<String> = fixture
        .cases()
        .into_iter()
        .filter(|c| fixture.0.contains_key(&format!("{c}.config")))
        .collect();
    assert!(cases.len() >= 5);
    for case in &cases {
        let [momentum, eps, relu, residual] = fixture.get(case, "config").to_vec1::<f64>()?[..]
        else {
            panic!("{case}")
        };
        let (weight, bias) = (fixture.var(case, "weight")?, fixture.var(case, "bias")?);
        let running_mean = Var::from_tensor(&weight.zeros_like()?)?;
        let running_var = Var::from_tensor(&weight.ones_like()?)?;
        let norm = BatchNorm {
            weight: weight.as_tensor().clone(),
            bias: bias.as_tensor().clone(),
            running_mean: running_mean.as_tensor().clone(),
            running_var: running_var.as_tensor().clone(),
            config: BatchNormConfig { momentum, eps, relu: relu == 1.0 },
        };
        for (pass, statistics) in [
            ("first", Statistics::Batch),
            ("second", Statistics::Batch),
            ("evaluation", Statistics::Running),
        ] {
            let case = &format!("{case}_{pass}");
            let x = fixture.var(case, "x")?;
            let mut variables = vec![("x", &x), ("weight", &weight), ("bias", &bias)];
            let r = (residual == 1.0).then(|| fixture.var(case, "residual")).transpose()?;
            variables.extend(r.as_ref().map(|r| ("residual", r)));
            let y = norm.forward(&x, r.as_ref().map(|r| r.as_tensor()), statistics)?;
            fixture.check(case, &y, &variables)?;
            fixture.assert_close(case, "running_mean", &running_mean)?;
            fixture.assert_close(case, "running_var", &running_var)?;
        }
    }
    let x = fixture.var("shortcut", "x")?;
    fixture.check("shortcut", &subsample_pad(&x, 8)?, &[("x", &x)])
}

#[test]
fn sgd_agrees_step_by_step() -> Result<()> {
    let fixture = Fixture::load("sgd")?;
    for case in &fixture.cases() {
        let [lr, momentum, nesterov, weight_decay] =
            fixture.get(case, "config").to_vec1::<f64>()?[..]
        else {
            panic!("{case}")
        };
        let parameter = fixture.var(case, "start")?;
        let parameters = BTreeMap::from([("p".to_string(), parameter.clone())]);
        let mut sgd = Sgd::new(SgdConfig { lr, momentum, nesterov: nesterov == 1.0, weight_decay });
        for step in 0..4 {
            let grad = fixture.get(case, &format!("grad.{step}"));
            let grads = (parameter.as_tensor() * grad)?.sum_all()?.backward()?;
            sgd.step(&parameters, &grads)?;
            fixture.assert_close(case, &format!("parameter.{step}"), &parameter)?;
        }
        if momentum > 0.0 {
            let buffer = Tensor::from_slice(&sgd.momentum["p"], parameter.shape(), &Device::Cpu)?;
            fixture.assert_close(case, "momentum", &buffer)?;
        } else {
            assert!(sgd.momentum.is_empty());
        }
    }
    Ok(())
}

#[test]
fn a_norm_is_finite_exactly_when_the_gradient_is() -> Result<()> {
    for (bad, finite) in [(f32::NAN, false), (f32::INFINITY, false), (f32::MAX, true)] {
        let parameter = Var::zeros(3, candle_core::DType::F32, &Device::Cpu)?;
        let grad = Tensor::new(&[1.0, bad, f32::MAX], &Device::Cpu)?;
        let grads = (parameter.as_tensor() * grad)?.sum_all()?.backward()?;
        let parameters = BTreeMap::from([("p".to_string(), parameter)]);
        assert_eq!(grad_norms(&parameters, &grads)?["p"].is_finite(), finite, "{bad}");
    }
    Ok(())
}
