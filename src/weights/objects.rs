//! The Python objects that a pickle names: what tensors need, what accompanies them, and what has no place beside them.

use std::rc::Rc;

use super::tensor::Element;

/// A class or function that a pickle names.
#[derive(Clone, Debug)]
pub(super) enum Global {
    /// A dictionary, empty when it is made: `OrderedDict`, `defaultdict`.
    Dictionary,
    RebuildTensor,
    RebuildParameter,
    /// Of a subclass of a tensor: it calls another of these.
    RebuildFromType,
    Size,
    Storage(Element),
    /// Whatever it makes is skipped.
    Inert,
    /// A class whose instances are skipped, or a function that is not called.
    Unknown(Rc<str>),
}

/// Functions and classes that are called to make what travels with checkpoints and says nothing about the weights.
const INERT: [&str; 24] = [
    "_codecs.encode",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "functools.partial",
    "uuid.UUID",
    "torch.device",
    "torch.Generator",
    "torch.torch_version.TorchVersion",
    "torch.serialization._get_layout",
    "builtins.object",
    "builtins.set",
    "builtins.frozenset",
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.int",
    "builtins.float",
    "builtins.bool",
    "builtins.complex",
    "builtins.bytearray",
    "builtins.slice",
    "builtins.range",
];

/// Modules of which nothing but plain values is pickled: numbers, dates, paths, settings, logs.
const INERT_MODULES: [&str; 20] = [
    "numpy",
    "collections",
    "datetime",
    "decimal",
    "fractions",
    "pathlib",
    "pytz",
    "zoneinfo",
    "omegaconf",
    "yacs",
    "easydict",
    "addict",
    "ml_collections",
    "mmcv",
    "mmengine",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "lightly",
];

pub(super) fn global(module: &str, name: &str) -> Global {
    // Pickles of Python 2's protocols call the module by its old name.
    let module = if module == "__builtin__" { "builtins" } else { module };
    let full = format!("{module}.{name}");
    match full.as_str() {
        "collections.OrderedDict" | "collections.defaultdict" => return Global::Dictionary,
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => return Global::RebuildTensor,
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            return Global::RebuildParameter;
        }
        "torch._tensor._rebuild_from_type_v2" => return Global::RebuildFromType,
        "torch.Size" => return Global::Size,
        _ => {}
    }
    if matches!(module, "torch" | "torch.cuda")
        && let Some(element) = Element::ALL.into_iter().find(|e| e.storage() == name)
    {
        return Global::Storage(element);
    }
    // `torch.float32` and its kind, among the settings of a run.
    let is_dtype = module == "torch" && Element::ALL.iter().any(|e| e.name() == name);
    let package = module.split('.').next().unwrap_or(module);
    if is_dtype || INERT.contains(&full.as_str()) || INERT_MODULES.contains(&package) {
        return Global::Inert;
    }
    Global::Unknown(full.into())
}

/// Why a file that would call `name` is refused, although it would not be called.
pub(super) fn refusal(name: &str) -> String {
    format!(
        "it needs the Python object `{name}`, which has no place in a file of weights and is not run; in a \
         place that trusts the file, save `model.state_dict()` alone with torch.save"
    )
}
