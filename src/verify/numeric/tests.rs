use super::compare::{F64_BOUND, Subject, compare, norm};
use super::*;
use crate::backend::Backend;
use crate::cpu::CpuBackend;

fn f64s() -> Result<Box<dyn Backend>> {
    Ok(Box::new(CpuBackend::<f64>::new(1)?))
}

fn f32s() -> Result<Box<dyn Backend>> {
    Ok(Box::new(CpuBackend::<f32>::new(1)?))
}

fn worst(preset: &str, op: Option<&str>, device: Open<'_>) -> Vec<Check> {
    let checks = check(&shrunk(preset).unwrap(), op, None, Backends { reference: &f64s, device }).unwrap();
    assert!(!checks.is_empty());
    checks.windows(2).for_each(|w| assert!(w[0].excess() >= w[1].excess(), "{w:?}"));
    checks
}

#[test]
fn a_gradient_that_is_wrong_is_beyond_its_bound() {
    // f(x) = sum of x^3.
    let x: Vec<f64> = (0..50).map(|i| f64::from(i) / 25.0 - 1.0).collect();
    let loss = |x: &[f64]| Ok(x.iter().map(|x| x.powi(3)).sum());
    let right: Vec<f64> = x.iter().map(|x| 3.0 * x * x).collect();
    let run = |gradient: &[f64]| {
        let subject = Subject { of: "cube", with_respect_to: "x", all: norm(gradient), bound: F64_BOUND };
        compare(&subject, &x, gradient, loss).unwrap()
    };
    let checks = run(&right);
    assert!(checks.len() == 2 && checks.iter().all(Check::passed), "{checks:?}");
    for wrong in [
        // One element of fifty, a factor, a sign, nothing at all, no number.
        right.iter().enumerate().map(|(i, g)| if i == 7 { g + 1e-3 } else { *g }).collect::<Vec<_>>(),
        right.iter().map(|g| g * 1.0001).collect(),
        right.iter().map(|g| -g).collect(),
        vec![0.0; 50],
        vec![f64::NAN; 50],
    ] {
        let checks = run(&wrong);
        assert!(checks.iter().any(|c| !c.passed()), "{checks:?}");
    }
}

#[test]
fn ops_are_checked_by_name() {
    let names = op_names(&shrunk("demo").unwrap()).unwrap();
    for name in ["linear", "attention", "layer_norm", "prototype_cross_entropy", "weighted_sum"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    let checks = worst("demo", Some("attention"), &f64s);
    assert!(checks.iter().all(|c| c.of.starts_with("attention ") && c.passed()), "{checks:?}");
    for (name, says) in [("relu6", "is not differentiated"), ("lineal", "is no op"), ("adamw", "--preset")] {
        let cfg = shrunk("demo").unwrap();
        let backends = Backends { reference: &f64s, device: &f64s };
        let e = check(&cfg, Some(name), None, backends).unwrap_err().to_string();
        assert!(e.contains(says) && e.contains(name) && e.contains("layer_norm"), "{e}");
    }
}

#[test]
fn every_op_and_the_whole_step_pass() {
    let checks = worst("demo", None, &f64s);
    assert!(checks[0].passed(), "{:?}", &checks[..4]);
    assert!(checks.iter().filter(|c| c.of == "step").count() > 100);
    assert!(checks.iter().any(|c| c.of.starts_with("linear ")));
}

/// DINO's too, with a learned gain: its op is part of the step.
#[test]
fn the_step_of_another_objective_passes() {
    let dino =
        crate::verify::fixture::Fixture::open("tests/fixtures/dino-micro.safetensors").unwrap().objective;
    assert!(op_names(&dino).unwrap().contains("scale_rows"));
    let checks = check(&dino, None, None, Backends { reference: &f64s, device: &f64s }).unwrap();
    assert!(checks[0].passed(), "{:?}", &checks[..4]);
    assert!(checks.iter().any(|c| c.with_respect_to == "csm.gain"));
}

/// Classes': batch normalisation, half of the images blended and half of them cut.
#[test]
fn the_step_of_classes_passes() {
    let path = "tests/fixtures/supervised-micro.safetensors";
    let supervised = crate::verify::fixture::Fixture::open(path).unwrap().objective;
    assert!(op_names(&supervised).unwrap().contains("soft_cross_entropy"));
    let checks = check(&supervised, None, None, Backends { reference: &f64s, device: &f64s }).unwrap();
    assert!(checks[0].passed(), "{:?}", &checks[..4]);
    assert!(checks.iter().any(|c| c.with_respect_to == "head.weight"));
}

#[test]
fn the_kinks_of_a_resnet_are_no_errors() {
    for op in ["max_pool2d", "relu", "conv2d"] {
        let checks = worst("demo-resnet", Some(op), &f64s);
        assert!(checks[0].passed(), "{op}: {:?}", checks[0]);
    }
}

/// A step along a direction that crosses a kink: only a shorter one tells the derivative. No length hides a wrong gradient.
#[test]
fn a_kink_beside_the_point_is_no_error_of_the_gradient() {
    let subject = Subject { of: "test", with_respect_to: "x", all: 1.0, bound: F64_BOUND };
    // Zero up to 4e-7 beyond the point, then steep.
    let loss = |x: &[f64]| Ok(x[0] + 100.0 * (x[0] - 1.0 - 4e-7).max(0.0));
    let right = compare(&subject, &[1.0], &[1.0], loss).unwrap();
    assert!(right.iter().all(Check::passed), "{right:?}");
    let wrong = compare(&subject, &[1.0], &[1.0001], loss).unwrap();
    assert!(wrong.iter().any(|c| !c.passed()), "{wrong:?}");
}

#[test]
fn a_device_is_held_against_another() {
    for op in ["linear", "prototype_cross_entropy"] {
        let checks = worst("demo", Some(op), &f32s);
        assert!(checks[0].passed() && checks[0].error > 1e-9, "f32 is not f64: {:?}", &checks[..2]);
    }
}
