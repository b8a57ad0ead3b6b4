//! `saip-engine plan --ranks`: what several devices would make of a step.

use super::step::StepArgs;
use crate::cuda::PlanningBackend;
use crate::error::{Error, Result};
use crate::plan::{self, Links, MACHINES, Machine, Plan, exposed, sums};
use crate::report::table::table;
use crate::step::StepOptions;
use crate::tensor::DType;
use crate::train::config::TrainConfig;
use crate::train::objective::objective;
use crate::units::human_bytes;

/// What `plan` is told of several devices.
#[derive(clap::Args, Clone, Debug)]
pub struct PlanRanksArgs {
    /// Predict how a run would scale to N devices in all
    #[arg(long, value_name = "N", conflicts_with_all = ["svg", "graph", "device"])]
    pub ranks: Option<usize>,
    /// Machines that they are spread over
    #[arg(long, value_name = "M", default_value_t = 1, requires = "ranks")]
    pub nodes: usize,
    /// The slowest link between them: 450G is 450 GB/s of each device (NVLink, PCIe), 100Gb is 100 Gbit/s of each machine
    /// [default: 450G on one machine, 100Gb on several]
    #[arg(long, value_name = "RATE", requires = "ranks")]
    pub link: Option<String>,
    /// The device: h200, h100, a6000
    #[arg(long, value_name = "NAME", default_value = "h200", requires = "ranks")]
    pub gpu: String,
}

/// Of a link's rate, what large sums reach: rings over NVLink 370 of 450 GB/s, over 100 Gbit/s with RDMA 11 of 12.5 GB/s, as
/// nccl-tests are reported to measure.
const DEVICE_LINK: f64 = 370.0 / 450.0;
const MACHINE_LINK: f64 = 11.0 / 12.5;
/// Seconds of a hop within a machine and between two, of the same reports.
const DEVICE_HOP: f64 = 3e-6;
const MACHINE_HOP: f64 = 10e-6;

/// The links that are usual within a machine and between two.
const WITHIN: &str = "450G";
const BETWEEN: &str = "100Gb";

/// The step that is asked for, beside the devices.
pub struct Asked<'a> {
    pub step: &'a StepArgs,
    pub batch: Option<usize>,
    pub scale: Option<f64>,
    pub dtype: Option<DType>,
    pub recompute: bool,
}

/// The step of several ranks as a GPU computes it.
struct Planned {
    micro: Plan,
    update: Option<Plan>,
    summed: Vec<(crate::ir::Region, usize, usize)>,
}

/// Prints the prediction.
///
/// # Errors
/// Those of the configuration; a device or link that is not known; a number of ranks that cannot share an update alike.
pub fn run(own: &PlanRanksArgs, args: &Asked<'_>, ranks: usize) -> Result<()> {
    let mut step = args.step.clone();
    step.sets.extend(args.batch.map(|batch| format!("optim.batch={batch}")));
    let cfg = step.resolve(None)?;
    let machine = machine(&own.gpu)?;
    if ranks == 0 || own.nodes == 0 || !ranks.is_multiple_of(own.nodes) {
        let message = format!(
            "--ranks {ranks} --nodes {}: every machine needs as many devices as the others",
            own.nodes
        );
        return Err(Error::usage(message));
    }
    cfg.optim.accumulation(ranks)?;
    let text = own.link.clone().unwrap_or_else(|| if own.nodes > 1 { BETWEEN } else { WITHIN }.to_owned());
    let dtype = args.dtype.unwrap_or(DType::Bf16);
    if !matches!(dtype, DType::Bf16 | DType::F32) {
        return Err(Error::usage(format!("--dtype {dtype}: {} computes in bf16 or f32", machine.name)));
    }
    let planned = planned(&cfg, args, dtype)?;
    let wire = cfg.dist.wire().bytes();
    let per_node = ranks / own.nodes;
    let mut worlds: Vec<usize> = (0..).map(|i| 1 << i).take_while(|n| *n < ranks).collect();
    worlds.push(ranks);
    let mut rows = Vec::new();
    let mut alone = None;
    for world in worlds.into_iter().filter(|n| cfg.optim.accumulation(*n).is_ok()) {
        // What fits a machine does not leave it.
        let within = own.nodes > 1 && world <= per_node;
        let links = links(if within { WITHIN } else { &text }, world, world.div_ceil(per_node))?;
        let (mut cells, seconds) = planned.scaled(&cfg, machine, &links)?;
        let rate = cfg.optim.effective_batch as f64 / seconds;
        let base = *alone.get_or_insert(rate / world as f64);
        cells.push(format!("{rate:.0}"));
        cells.push(format!("{:.1} %", 100.0 * rate / (base * world as f64)));
        rows.push(cells);
    }
    let bytes: f64 = planned.summed.iter().map(|s| (s.2 * wire) as f64).sum();
    println!(
        "{} at batch {} a device, {dtype}, on {} x {} of {} {}, link {text}: {} in {} sums as {}",
        args.step.preset,
        cfg.optim.batch,
        own.nodes,
        per_node,
        machine.name,
        if own.nodes > 1 { "(machines x devices)" } else { "devices" },
        human_bytes(bytes as u64),
        planned.summed.len(),
        cfg.dist.wire(),
    );
    let headers = ["ranks", "micro steps", "update", "sums take", "exposed", "images/s", "efficiency"];
    println!("{}", table(&headers, &rows));
    println!(
        "at the floor of the step's own bytes and products, which no kernel beats: a slower step hides more. Memory of a rank: {}",
        human_bytes(plan_bytes(&planned.micro))
    );
    Ok(())
}

impl Planned {
    /// Ranks, micro steps of each, and times of an update over `links`, as cells of the table; and its seconds.
    fn scaled(&self, cfg: &TrainConfig, machine: &Machine, links: &Links) -> Result<(Vec<String>, f64)> {
        let micro_steps = cfg.optim.accumulation(links.ranks)?;
        let sums = sums(&self.micro, &self.summed, cfg.dist.wire().bytes(), machine, links);
        let update = self.update.as_ref().map_or(0.0, |plan| machine.seconds(plan));
        let bare = exposed(&self.micro, &sums, machine);
        let seconds = machine.seconds(&self.micro) * micro_steps as f64 + update + bare;
        let travel: f64 = sums.iter().map(|s| s.ends - s.begins).sum();
        let ms = |x: f64| format!("{:.2} ms", 1e3 * x);
        Ok((
            vec![links.ranks.to_string(), micro_steps.to_string(), ms(seconds), ms(travel), ms(bare)],
            seconds,
        ))
    }
}

pub(super) fn machine(name: &str) -> Result<&'static Machine> {
    MACHINES.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<&str> = MACHINES.iter().map(|m| m.name).collect();
        Error::usage(format!("--gpu {name} is not known: use one of {}", known.join(", ")))
    })
}

/// The link that `text` names, between `ranks` devices on `nodes` machines.
fn links(text: &str, ranks: usize, nodes: usize) -> Result<Links> {
    let number = |digits: &str| digits.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
    let bits = text.strip_suffix("Gb").and_then(number).map(|x| x * 1e9 / 8.0 * MACHINE_LINK);
    let bytes = text.strip_suffix('G').and_then(number).map(|x| x * 1e9 * DEVICE_LINK);
    let told = bits.or(bytes).ok_or_else(|| {
        Error::usage(format!(
            "--link {text}: give GB/s of a device such as 450G, or Gbit/s of a machine such as 100Gb"
        ))
    })?;
    // One machine of several has links within that are not told: none of them is slower.
    let latency = if nodes > 1 { MACHINE_HOP } else { DEVICE_HOP };
    Ok(Links { ranks, bandwidth: told, latency })
}

fn planned(cfg: &TrainConfig, args: &Asked<'_>, dtype: DType) -> Result<Planned> {
    let scale = args.scale.unwrap_or(cfg.views.scale[1]);
    let objective = objective(cfg)?.at_scale(scale)?;
    let backend = PlanningBackend::new(dtype);
    let micro_steps = cfg.optim.accumulation(1)?;
    let stretch = Some(cfg.dist.stretch());
    let opts = StepOptions { dtype, micro_steps, drop_path: cfg.encoder.drop_path, stretch };
    let built = objective.step(0, &opts)?;
    let micro = plan::compile(built.graph, args.recompute || cfg.run.recompute, &backend)?;
    let update = built.update.map(|graph| plan::compile(graph, false, &backend)).transpose()?;
    Ok(Planned { micro, update, summed: built.summed })
}

fn plan_bytes(plan: &Plan) -> u64 {
    (plan.regions.iter().map(|r| r.bytes()).sum::<usize>() + plan.arena_bytes) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_bytes_of_a_device_or_bits_of_a_machine() {
        let rate = |text| links(text, 8, 1).map(|l| l.bandwidth / 1e9);
        assert!((rate("450G").unwrap() - 370.0).abs() < 1e-9);
        assert!((rate("100Gb").unwrap() - 11.0).abs() < 1e-9);
        for wrong in ["", "G", "fast", "-1G", "infG", "100", "1e999Gb"] {
            assert!(rate(wrong).unwrap_err().to_string().contains("450G"), "{wrong}");
        }
        assert!(machine("h900").unwrap_err().to_string().contains("a6000"));
    }
}
