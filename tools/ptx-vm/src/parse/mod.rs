//! Module level of the grammar: variables, kernels and device functions.

mod body;
pub(crate) mod context;
pub(crate) mod cursor;
mod vars;

use context::Parts;
use cursor::Cursor;
use vars::param;

use crate::error::{Error, Result};
use crate::ir::{Function, Op, Param};
use crate::lex::{Tok, tokenise};

/// Parses a whole module.
pub(crate) fn parse(text: &str) -> Result<Parts> {
    let toks = tokenise(text)?;
    let mut c = Cursor { toks: &toks, pos: 0 };
    let mut parts = Parts::default();
    while c.peek().is_some() {
        top_level(&mut c, &mut parts)?;
    }
    link(&mut parts)?;
    Ok(parts)
}

fn top_level(c: &mut Cursor<'_, '_>, parts: &mut Parts) -> Result<()> {
    let mut external = false;
    loop {
        let word = c.word()?;
        match word {
            ".version" => {
                parts.version = match c.next()? {
                    Tok::F64(bits) => format!("{:?}", f64::from_bits(bits)),
                    Tok::Int(v) => v.to_string(),
                    _ => return c.error("expected the version number"),
                };
                return Ok(());
            }
            ".target" => {
                parts.target = c.word()?.to_string();
                while c.accept(b',') {
                    c.word()?;
                }
                return Ok(());
            }
            ".address_size" => {
                return if c.int()? == 64 { Ok(()) } else { c.error("only 64-bit addresses are supported") };
            }
            ".extern" => external = true,
            ".visible" | ".weak" | ".common" => {}
            ".global" | ".const" | ".shared" => {
                let symbol = vars::variable(c, word, external, &parts.names)?;
                let id = parts.symbols.len() as u32;
                parts.names.insert(symbol.name.clone(), id);
                parts.symbols.push(symbol);
                return Ok(());
            }
            ".entry" | ".func" => return function(c, parts, word == ".entry"),
            ".pragma" | ".file" => {
                while !matches!(c.next()?, Tok::Str) {}
                // `.pragma "x";` ends with a semicolon, `.file 1 "x"` does not.
                c.accept(b';');
                return Ok(());
            }
            ".section" => {
                while c.next()? != Tok::Punct(b'}') {}
                return Ok(());
            }
            other => {
                c.pos -= 1;
                return c.error(format!("unknown directive `{other}`"));
            }
        }
    }
}

/// `( .param .u64 name, ... )`; offsets follow the C layout.
fn params(c: &mut Cursor<'_, '_>, base: u32) -> Result<Vec<Param>> {
    let mut out: Vec<Param> = Vec::new();
    let mut offset = base;
    if c.accept(b')') {
        return Ok(out);
    }
    loop {
        match c.word()? {
            ".param" => {}
            ".reg" => return c.error("register parameters are not supported"),
            other => return c.error(format!("expected `.param`, found `{other}`")),
        }
        let param = param(c, offset)?;
        offset = param.offset + param.size;
        out.push(param);
        if c.accept(b')') {
            return Ok(out);
        }
        c.expect(b',')?;
    }
}

fn function(c: &mut Cursor<'_, '_>, parts: &mut Parts, entry: bool) -> Result<()> {
    let rets = if c.accept(b'(') { params(c, 0)? } else { Vec::new() };
    let name = c.word()?.to_string();
    let in_function = |e: Error| match e {
        Error::Parse { line, function, message } if function.is_empty() => {
            Error::Parse { line, function: name.clone(), message }
        }
        other => other,
    };
    let mut f = Function {
        name: name.clone(),
        entry,
        declared_only: false,
        code: Vec::new(),
        reconverge: Vec::new(),
        slots: 0,
        preds: 0,
        params: Vec::new(),
        rets,
        param_bytes: 0,
        frame_bytes: 0,
        local_bytes: 0,
        maxntid: None,
        reqntid: None,
        symbols: Vec::new(),
        calls: Vec::new(),
    };
    if c.accept(b'(') {
        let base = if entry { 0 } else { f.rets.last().map_or(0, |p| p.offset + p.size) };
        f.params = params(c, base).map_err(in_function)?;
    }
    let end = f.params.iter().chain(&f.rets).map(|p| p.offset + p.size).max().unwrap_or(0);
    (f.param_bytes, f.frame_bytes) = if entry { (end, 0) } else { (0, end.next_multiple_of(16)) };
    directives(c, &mut f).map_err(in_function)?;
    if c.accept(b';') {
        f.declared_only = true;
    } else {
        f = body::body(c, parts, f).map_err(in_function)?;
    }
    store(parts, f);
    Ok(())
}

/// A definition replaces its prototype.
fn store(parts: &mut Parts, f: Function) {
    if let Some(&id) = parts.by_name.get(&f.name) {
        if !f.declared_only {
            parts.functions[id as usize] = f;
        }
    } else {
        parts.by_name.insert(f.name.clone(), parts.functions.len() as u32);
        parts.functions.push(f);
    }
}

fn directives(c: &mut Cursor<'_, '_>, f: &mut Function) -> Result<()> {
    loop {
        match c.peek() {
            Some(Tok::Word(".maxntid")) => f.maxntid = Some(dims(c)?),
            Some(Tok::Word(".reqntid")) => f.reqntid = Some(dims(c)?),
            Some(Tok::Word(
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" | ".maxnctapersm" | ".reqnctapercluster",
            )) => {
                dims(c)?;
            }
            Some(Tok::Word(".noreturn" | ".explicitcluster")) => c.pos += 1,
            Some(Tok::Word(".pragma")) => c.skip_statement()?,
            Some(Tok::Word(other)) => return c.error(format!("unknown directive `{other}`")),
            _ => return Ok(()),
        }
    }
}

fn dims(c: &mut Cursor<'_, '_>) -> Result<[u32; 3]> {
    c.pos += 1;
    let mut out = [c.small_int()?, 1, 1];
    for d in &mut out[1..] {
        if !c.accept(b',') {
            break;
        }
        *d = c.small_int()?;
    }
    Ok(out)
}

/// External functions that the runtime library of the device provides and we imitate.
const PROVIDED: [&str; 2] = ["vprintf", "__assertfail"];

/// Resolves calls, and computes reconvergence points now that all code is there.
fn link(parts: &mut Parts) -> Result<()> {
    let signature = |f: &Function| -> (Vec<u32>, Vec<u32>) {
        (f.params.iter().map(|p| p.size).collect(), f.rets.iter().map(|p| p.size).collect())
    };
    let signatures: Vec<_> = parts.functions.iter().map(signature).collect();
    let declared: Vec<bool> = parts.functions.iter().map(|f| f.declared_only).collect();
    for f in &mut parts.functions {
        for inst in &mut f.code {
            let Op::Call { func, args, rets, name } = &mut inst.op else { continue };
            let error =
                |message: String| Err(Error::Parse { line: inst.line, function: f.name.clone(), message });
            let Some(&id) = parts.by_name.get(&**name) else {
                return error(format!("call of unknown function `{name}`"));
            };
            if declared[id as usize] && !PROVIDED.contains(&&**name) {
                return error(format!("call of `{name}`, which has no body"));
            }
            let sizes = |list: &[(u32, u32)]| list.iter().map(|a| a.1).collect::<Vec<_>>();
            if (sizes(args), sizes(rets)) != signatures[id as usize] {
                return error(format!("arguments do not fit the parameters of `{name}`"));
            }
            *func = id;
            f.calls.push(id);
        }
        f.reconverge = crate::cfg::reconvergence(&f.code);
    }
    Ok(())
}
