//! Instruction groups against results worked out in plain Rust.

mod common;

use common::*;
use ptx_vm::Module;

/// Interesting words in all pairs, with a third operand.
fn words() -> Vec<[u32; 3]> {
    let v = [0u32, 1, 2, 7, 31, 32, 33, 255, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1234_5678, 0xdead_beef];
    let pairs = v.iter().flat_map(|a| v.iter().map(move |b| (*a, *b)));
    pairs.enumerate().map(|(i, (a, b))| [a, b, v[(i * 5 + 3) % v.len()]]).collect()
}

fn longs() -> Vec<[u64; 3]> {
    let v = [
        0u64,
        1,
        3,
        63,
        64,
        65,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
        0x0123_4567_89ab_cdef,
    ];
    let pairs = v.iter().flat_map(|a| v.iter().map(move |b| (*a, *b)));
    pairs.enumerate().map(|(i, (a, b))| [a, b, v[(i * 7 + 1) % v.len()]]).collect()
}

fn check32(op: &str, want: impl Fn(u32, u32, u32) -> u32) {
    check32_on(op, &words(), want);
}

fn check32_on(op: &str, inputs: &[[u32; 3]], want: impl Fn(u32, u32, u32) -> u32) {
    for (v, got) in inputs.iter().zip(run32(&op.replace(';', ";\n"), inputs, 1)) {
        let want = want(v[0], v[1], v[2]);
        assert_eq!(got, want, "{op} of {v:x?}: got {got:#x}, want {want:#x}");
    }
}

fn check64(op: &str, want: impl Fn(u64, u64, u64) -> u64) {
    let inputs = longs();
    for (v, got) in inputs.iter().zip(run64(op, &inputs, 1)) {
        let want = want(v[0], v[1], v[2]);
        assert_eq!(got, want, "{op} of {v:x?}: got {got:#x}, want {want:#x}");
    }
}

#[test]
fn integer_arithmetic_of_32_bits() {
    check32("add.s32 %r10, %r1, %r2;", |a, b, _| a.wrapping_add(b));
    check32("sub.u32 %r10, %r1, %r2;", |a, b, _| a.wrapping_sub(b));
    check32("add.sat.s32 %r10, %r1, %r2;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    check32("sub.sat.s32 %r10, %r1, %r2;", |a, b, _| (a as i32).saturating_sub(b as i32) as u32);
    check32("mul.lo.s32 %r10, %r1, %r2;", |a, b, _| a.wrapping_mul(b));
    check32("mul.hi.u32 %r10, %r1, %r2;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check32("mul.hi.s32 %r10, %r1, %r2;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    check32("mad.lo.s32 %r10, %r1, %r2, %r3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("mad.hi.u32 %r10, %r1, %r2, %r3;", |a, b, c| {
        (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
    });
    check32("mul24.lo.u32 %r10, %r1, %r2;", |a, b, _| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff));
    check32("mad24.lo.s32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let s = |v: u32| ((v << 8) as i32) >> 8;
        s(a).wrapping_mul(s(b)).wrapping_add(c as i32) as u32
    });
    let divisible: Vec<[u32; 3]> = words().into_iter().filter(|v| v[1] != 0).collect();
    check32_on("div.u32 %r10, %r1, %r2;", &divisible, |a, b, _| a / b);
    check32_on("rem.u32 %r10, %r1, %r2;", &divisible, |a, b, _| a % b);
    check32_on("div.s32 %r10, %r1, %r2;", &divisible, |a, b, _| (a as i32).wrapping_div(b as i32) as u32);
    check32_on("rem.s32 %r10, %r1, %r2;", &divisible, |a, b, _| (a as i32).wrapping_rem(b as i32) as u32);
    check32("abs.s32 %r10, %r1;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check32("neg.s32 %r10, %r1;", |a, _, _| a.wrapping_neg());
    check32("min.s32 %r10, %r1, %r2;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("max.u32 %r10, %r1, %r2;", |a, b, _| a.max(b));
    check32("sad.u32 %r10, %r1, %r2, %r3;", |a, b, c| a.abs_diff(b).wrapping_add(c));
    check32("sad.s32 %r10, %r1, %r2, %r3;", |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c));
}

#[test]
fn integer_logic_and_bits_of_32_bits() {
    check32("and.b32 %r10, %r1, %r2;", |a, b, _| a & b);
    check32("or.b32 %r10, %r1, %r2;", |a, b, _| a | b);
    check32("xor.b32 %r10, %r1, %r2;", |a, b, _| a ^ b);
    check32("not.b32 %r10, %r1;", |a, _, _| !a);
    check32("cnot.b32 %r10, %r1;", |a, _, _| u32::from(a == 0));
    check32("lop3.b32 %r10, %r1, %r2, %r3, 0x96;", |a, b, c| a ^ b ^ c);
    check32("lop3.b32 %r10, %r1, %r2, %r3, 0xca;", |a, b, c| a & b | !a & c);
    check32("shl.b32 %r10, %r1, %r2;", |a, b, _| if b > 31 { 0 } else { a << b });
    check32("shr.u32 %r10, %r1, %r2;", |a, b, _| if b > 31 { 0 } else { a >> b });
    check32("shr.s32 %r10, %r1, %r2;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    check32("shf.l.wrap.b32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let n = c % 32;
        if n == 0 { b } else { b << n | a >> (32 - n) }
    });
    check32("shf.r.clamp.b32 %r10, %r1, %r2, %r3;", |a, b, c| match c {
        0 => a,
        1..32 => b << (32 - c) | a >> c,
        _ => b,
    });
    check32("popc.b32 %r10, %r1;", |a, _, _| a.count_ones());
    check32("clz.b32 %r10, %r1;", |a, _, _| a.leading_zeros());
    check32("brev.b32 %r10, %r1;", |a, _, _| a.reverse_bits());
    check32("bfind.u32 %r10, %r1;", |a, _, _| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() });
    check32("bfind.s32 %r10, %r1;", |a, _, _| {
        let v = if (a as i32) < 0 { !a } else { a };
        if v == 0 { u32::MAX } else { 31 - v.leading_zeros() }
    });
    check32("bfind.shiftamt.u32 %r10, %r1;", |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() });
    let bit = |a: u32, i: u32| if i < 32 { a >> i & 1 } else { 0 };
    check32("bfe.u32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let (pos, len) = (b & 255, (c & 255).min(32));
        (0..len).fold(0, |v, i| v | bit(a, pos + i) << i)
    });
    check32("bfe.s32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let (pos, len) = (b & 255, c & 255);
        let sign = if len == 0 { 0 } else { bit(a, (pos + len - 1).min(31)) };
        (0..32).fold(0, |v, i| v | (if i < len && pos + i <= 31 { bit(a, pos + i) } else { sign }) << i)
    });
    check32("bfi.b32 %r10, %r1, %r2, 8, 12;", |a, b, _| b & !0xfff00 | a << 8 & 0xfff00);
    check32("bfi.b32 %r10, %r1, %r2, %r3, 3;", |a, b, c| {
        (0..3).fold(b, |v, i| {
            let p = (c & 255) + i;
            if p < 32 { v & !(1 << p) | (a >> i & 1) << p } else { v }
        })
    });
    check32("prmt.b32 %r10, %r1, %r2, 0x5410;", |a, b, _| a & 0xffff | b << 16);
    check32("prmt.b32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let sel = c >> (4 * i) & 15;
            let v = bytes[sel as usize & 7];
            if sel & 8 != 0 { if v >= 128 { 255 } else { 0 } } else { v }
        }))
    });
    check32("szext.wrap.s32 %r10, %r1, %r2;", |a, b, _| match b % 32 {
        0 => 0,
        n => (((a << (32 - n)) as i32) >> (32 - n)) as u32,
    });
    check32("bmsk.clamp.b32 %r10, %r1, %r2;", |a, b, _| {
        (0..32).filter(|i| *i >= a.min(32) && *i < a.min(32) + b.min(32)).fold(0, |v, i| v | 1 << i)
    });
    check32("dp4a.u32.s32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let dot: i32 =
            (0..4).map(|i| i32::from(a.to_le_bytes()[i]) * i32::from(b.to_le_bytes()[i] as i8)).sum();
        c.wrapping_add(dot as u32)
    });
    check32("dp2a.hi.s32.u32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let half = |i: u32| i32::from((a >> (16 * i)) as i16);
        let dot = half(0) * i32::from(b.to_le_bytes()[2]) + half(1) * i32::from(b.to_le_bytes()[3]);
        c.wrapping_add(dot as u32)
    });
}

#[test]
fn integers_of_64_bits_and_carries() {
    check64("add.s64 %l10, %l1, %l2;", |a, b, _| a.wrapping_add(b));
    check64("mul.lo.u64 %l10, %l1, %l2;", |a, b, _| a.wrapping_mul(b));
    check64("mul.hi.u64 %l10, %l1, %l2;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check64("mul.hi.s64 %l10, %l1, %l2;", |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
    check64("mad.lo.s64 %l10, %l1, %l2, %l3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check64("shl.b64 %l10, %l1, 40;", |a, _, _| a << 40);
    check64("cvt.u32.u64 %r1, %l2; shr.s64 %l10, %l1, %r1;", |a, b, _| {
        ((a as i64) >> (b as u32).min(63)) as u64
    });
    check64("min.u64 %l10, %l1, %l2;", |a, b, _| a.min(b));
    check64("max.s64 %l10, %l1, %l2;", |a, b, _| (a as i64).max(b as i64) as u64);
    check64("popc.b64 %r1, %l1; clz.b64 %r2, %l1; mov.b64 %l10, {%r1, %r2};", |a, _, _| {
        u64::from(a.count_ones()) | u64::from(a.leading_zeros()) << 32
    });
    check64("cvt.u32.u64 %r1, %l1; cvt.u32.u64 %r2, %l2; mul.wide.s32 %l10, %r1, %r2;", |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
    check64("cvt.u32.u64 %r1, %l1; cvt.u32.u64 %r2, %l2; mad.wide.u32 %l10, %r1, %r2, %l3;", |a, b, c| {
        (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c)
    });
    let split = "mov.b64 {%r1, %r2}, %l1; mov.b64 {%r3, %r4}, %l2;";
    check64(
        &format!("{split} add.cc.u32 %r5, %r1, %r3; addc.u32 %r6, %r2, %r4; mov.b64 %l10, {{%r5, %r6}};"),
        |a, b, _| a.wrapping_add(b),
    );
    check64(
        &format!("{split} sub.cc.u32 %r5, %r1, %r3; subc.u32 %r6, %r2, %r4; mov.b64 %l10, {{%r5, %r6}};"),
        |a, b, _| a.wrapping_sub(b),
    );
    check64(
        &format!(
            "{split} mad.lo.cc.u32 %r5, %r1, %r3, 77; madc.hi.u32 %r6, %r1, %r3, 0; mov.b64 %l10, {{%r5, %r6}};"
        ),
        |a, b, _| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(77),
    );
}

#[test]
fn sixteen_bit_arithmetic_and_packing() {
    let two = "cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2;";
    check32(&format!("{two} add.s16 %h3, %h1, %h2; cvt.u32.u16 %r10, %h3;"), |a, b, _| {
        u32::from((a as u16).wrapping_add(b as u16))
    });
    check32(&format!("{two} mul.wide.s16 %r10, %h1, %h2;"), |a, b, _| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32
    });
    check32(&format!("{two} shr.s16 %h3, %h1, 3; cvt.s32.s16 %r10, %h3;"), |a, _, _| {
        i32::from((a as i16) >> 3) as u32
    });
    check32(&format!("{two} mov.b32 %r10, {{%h2, %h1}};"), |a, b, _| b & 0xffff | a << 16);
    check32("mov.b32 {%h1, %h2}, %r1; mov.b32 %r10, {%h2, %h1};", |a, _, _| a.rotate_left(16));
    check32("cvt.s8.s32 %h1, %r1; cvt.s32.s16 %r10, %h1;", |a, _, _| i32::from(a as i8) as u32);
    check32("cvt.sat.u8.s32 %r10, %r1;", |a, _, _| (a as i32).clamp(0, 255) as u32);
}

#[test]
fn comparisons_selections_and_predicates() {
    let flag = |p: &str| format!("selp.u32 %r10, 1, 0, {p};");
    for (cmp, f) in [
        ("eq.s32", (|a, b| a == b) as fn(u32, u32) -> bool),
        ("ne.u32", |a, b| a != b),
        ("lt.s32", |a, b| (a as i32) < b as i32),
        ("lt.u32", |a, b| a < b),
        ("hs.u32", |a, b| a >= b),
        ("ge.s32", |a, b| a as i32 >= b as i32),
        ("le.s16", |a, b| a as i16 <= b as i16),
    ] {
        let pre = if cmp.ends_with("16") { "cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2;" } else { "" };
        let (x, y) = if cmp.ends_with("16") { ("%h1", "%h2") } else { ("%r1", "%r2") };
        check32(&format!("{pre} setp.{cmp} %p1, {x}, {y}; {}", flag("%p1")), |a, b, _| u32::from(f(a, b)));
    }
    check32(
        &format!("setp.gt.u32 %p1, %r1, 5; setp.lt.and.u32 %p2|%p3, %r1, %r2, %p1; {}", flag("%p2")),
        |a, b, _| u32::from(a < b && a > 5),
    );
    check32(
        &format!("setp.gt.u32 %p1, %r1, 5; setp.lt.or.u32 %p2|%p3, %r1, %r2, !%p1; {}", flag("%p3")),
        |a, b, _| u32::from(a >= b || a <= 5),
    );
    check32(
        &format!(
            "setp.gt.u32 %p1, %r1, 5; setp.lt.u32 %p2, %r2, 9; xor.pred %p3, %p1, %p2; not.pred %p4, %p3; {}",
            flag("%p4")
        ),
        |a, b, _| u32::from((a > 5) == (b < 9)),
    );
    check32("set.lt.u32.s32 %r10, %r1, %r2;", |a, b, _| if (a as i32) < b as i32 { u32::MAX } else { 0 });
    check32("slct.b32.s32 %r10, %r1, %r2, %r3;", |a, b, c| if c as i32 >= 0 { a } else { b });
    check32(
        "setp.lt.u32 %p1, %r1, %r2; mov.u32 %r10, 3; @%p1 mov.u32 %r10, 4; @!%p1 add.u32 %r10, %r10, 2;",
        |a, b, _| {
            if a < b { 4 } else { 5 }
        },
    );
}

fn floats() -> Vec<[u32; 3]> {
    let v = [
        0.0f32,
        -0.0,
        1.0,
        -1.5,
        0.1,
        3.0e-39,
        -1.0e-45,
        1.0e38,
        -3.4e38,
        16777217.0,
        7.25e-20,
        123.456,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        0.5,
    ];
    let pairs = v.iter().flat_map(|a| v.iter().map(move |b| (*a, *b)));
    pairs
        .enumerate()
        .map(|(i, (a, b))| [a.to_bits(), b.to_bits(), v[(i * 3 + 2) % v.len()].to_bits()])
        .collect()
}

/// NaN results are canonical.
fn check_f32(op: &str, want: impl Fn(f32, f32, f32) -> f32) {
    let op = format!("mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; {op} mov.b32 %r10, %f10;");
    check32_on(&op, &floats(), |a, b, c| {
        let r = want(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        if r.is_nan() { 0x7fff_ffff } else { r.to_bits() }
    });
}

fn ftz(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

#[test]
fn single_precision() {
    check_f32("add.f32 %f10, %f1, %f2;", |a, b, _| a + b);
    check_f32("sub.rn.f32 %f10, %f1, %f2;", |a, b, _| a - b);
    check_f32("mul.f32 %f10, %f1, %f2;", |a, b, _| a * b);
    check_f32("fma.rn.f32 %f10, %f1, %f2, %f3;", |a, b, c| a.mul_add(b, c));
    check_f32("add.ftz.f32 %f10, %f1, %f2;", |a, b, _| ftz(ftz(a) + ftz(b)));
    check_f32("mul.ftz.f32 %f10, %f1, %f2;", |a, b, _| ftz(ftz(a) * ftz(b)));
    check_f32("div.rn.f32 %f10, %f1, %f2;", |a, b, _| a / b);
    check_f32("sqrt.rn.f32 %f10, %f1;", |a, _, _| a.sqrt());
    check_f32("rcp.rn.f32 %f10, %f1;", |a, _, _| 1.0 / a);
    check_f32("add.sat.f32 %f10, %f1, %f2;", |a, b, _| if a + b > 0.0 { (a + b).min(1.0) } else { 0.0 });
    check_f32("max.f32 %f10, %f1, %f2;", |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    });
    check_f32("min.NaN.f32 %f10, %f1, %f2;", |a, b, _| match a.is_nan() || b.is_nan() {
        true => f32::NAN,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    });
    check_f32("ex2.approx.ftz.f32 %f10, %f1;", |a, _, _| ftz((f64::from(ftz(a))).exp2() as f32));
    check_f32("lg2.approx.f32 %f10, %f1;", |a, _, _| f64::from(a).log2() as f32);
    check_f32("rsqrt.approx.f32 %f10, %f1;", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    check_f32("tanh.approx.f32 %f10, %f1;", |a, _, _| f64::from(a).tanh() as f32);
    check_f32("sin.approx.f32 %f10, %f1;", |a, _, _| f64::from(a).sin() as f32);
    // Sign operations keep the payload of a NaN.
    let sign = "mov.b32 %f1, %r1; mov.b32 %f2, %r2;";
    check32_on(&format!("{sign} neg.f32 %f10, %f1; mov.b32 %r10, %f10;"), &floats(), |a, _, _| a ^ 1 << 31);
    check32_on(&format!("{sign} abs.f32 %f10, %f1; mov.b32 %r10, %f10;"), &floats(), |a, _, _| {
        a & !(1 << 31)
    });
    check32_on(&format!("{sign} copysign.f32 %f10, %f1, %f2; mov.b32 %r10, %f10;"), &floats(), |a, b, _| {
        b & 0x7fff_ffff | a & 1 << 31
    });
    check32_on(
        &format!("{sign} testp.subnormal.f32 %p1, %f1; selp.u32 %r10, 1, 0, %p1;"),
        &floats(),
        |a, _, _| u32::from(f32::from_bits(a).is_subnormal()),
    );
    check32_on(
        &format!("{sign} setp.ltu.f32 %p1, %f1, %f2; selp.u32 %r10, 1, 0, %p1;"),
        &floats(),
        |a, b, _| {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            u32::from(a < b || a.is_nan() || b.is_nan())
        },
    );
    check32_on(
        &format!("{sign} setp.ne.f32 %p1, %f1, %f2; selp.u32 %r10, 1, 0, %p1;"),
        &floats(),
        |a, b, _| {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            u32::from(a != b && !a.is_nan() && !b.is_nan())
        },
    );
}

#[test]
fn directed_rounding_of_single_precision() {
    // Exact in f64: products of floats, and sums of floats of similar size.
    let v: Vec<[u32; 3]> = noise(64, 9).chunks(2).map(|c| [c[0].to_bits(), c[1].to_bits(), 0]).collect();
    let down = |x: f64| {
        let r = x as f32;
        if f64::from(r) > x { r.next_down() } else { r }
    };
    let up = |x: f64| -down(-x);
    let run = |op: &str, f: &dyn Fn(f64, f64) -> f32| {
        let op = format!("mov.b32 %f1, %r1; mov.b32 %f2, %r2; {op} mov.b32 %r10, %f10;");
        check32_on(&op, &v, |a, b, _| f(f32::from_bits(a).into(), f32::from_bits(b).into()).to_bits());
    };
    run("mul.rm.f32 %f10, %f1, %f2;", &|a, b| down(a * b));
    run("mul.rp.f32 %f10, %f1, %f2;", &|a, b| up(a * b));
    run("add.rz.f32 %f10, %f1, %f2;", &|a, b| if a + b > 0.0 { down(a + b) } else { up(a + b) });
    run("fma.rm.f32 %f10, %f1, %f2, 0f3F800000;", &|a, b| down(a * b + 1.0));
    // Quotients checked by multiplying back: q is the largest float with q * b <= a.
    let op = "mov.b32 %f1, %r1; mov.b32 %f2, %r2; abs.f32 %f1, %f1; abs.f32 %f2, %f2; div.rm.f32 %f10, %f1, %f2; mov.b32 %r10, %f10;";
    for (v, q) in v.iter().zip(run32(op, &v, 1)) {
        let (a, b, q) =
            (f64::from(f32::from_bits(v[0])).abs(), f64::from(f32::from_bits(v[1])).abs(), f32::from_bits(q));
        assert!(f64::from(q) * b <= a && f64::from(q.next_up()) * b > a, "{a} / {b} = {q}");
    }
}

#[test]
fn conversions() {
    let from = |op: &str| format!("mov.b32 %f1, %r1; {op}");
    check32_on(&from("cvt.rzi.s32.f32 %r10, %f1;"), &floats(), |a, _, _| f32::from_bits(a) as i32 as u32);
    check32_on(&from("cvt.rzi.u32.f32 %r10, %f1;"), &floats(), |a, _, _| f32::from_bits(a) as u32);
    check32_on(&from("cvt.rni.s32.f32 %r10, %f1;"), &floats(), |a, _, _| {
        f32::from_bits(a).round_ties_even() as i32 as u32
    });
    check32_on(&from("cvt.rmi.s32.f32 %r10, %f1;"), &floats(), |a, _, _| {
        f32::from_bits(a).floor() as i32 as u32
    });
    check32_on(&from("cvt.rn.f16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;"), &floats(), |a, _, _| {
        let x = f32::from_bits(a);
        if x.is_nan() { 0x7fff } else { half::f16::from_f32(x).to_bits().into() }
    });
    check32_on(&from("cvt.rn.bf16.f32 %h1, %f1; cvt.u32.u16 %r10, %h1;"), &floats(), |a, _, _| bf16(a));
    check32_on(
        "mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.bf16x2.f32 %r10, %f1, %f2;",
        &floats(),
        |a, b, _| bf16(a) << 16 | bf16(b),
    );
    check32_on(
        "mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.relu.bf16x2.f32 %r10, %f1, %f2;",
        &floats(),
        |a, b, _| {
            let relu = |v: u32| if f32::from_bits(v) <= 0.0 { 0 } else { bf16(v) };
            relu(a) << 16 | relu(b)
        },
    );
    check32_on(&from("cvt.rna.tf32.f32 %r10, %f1;"), &floats(), |a, _, _| match f32::from_bits(a).is_nan() {
        true => 0x7fff_ffff,
        false if a & 0x7fff_ffff == 0x7f80_0000 => a,
        false => a.wrapping_add(0x1000) & !0x1fff,
    });
    check32("cvt.rn.f32.s32 %f1, %r1; mov.b32 %r10, %f1;", |a, _, _| (a as i32 as f32).to_bits());
    check32("cvt.rn.f32.u32 %f1, %r1; mov.b32 %r10, %f1;", |a, _, _| (a as f32).to_bits());
    check32("cvt.rz.f32.u32 %f1, %r1; mov.b32 %r10, %f1;", |a, _, _| {
        let keep = a & !(u32::MAX.checked_shr(a.leading_zeros() + 24).unwrap_or(0));
        (keep as f32).to_bits()
    });
    check64("cvt.rn.f32.s64 %f1, %l1; mov.b32 %r1, %f1; cvt.u64.u32 %l10, %r1;", |a, _, _| {
        u64::from((a as i64 as f32).to_bits())
    });
    check64("cvt.rn.f64.u64 %d1, %l1; mov.b64 %l10, %d1;", |a, _, _| (a as f64).to_bits());
    check64(
        "mov.b64 %d1, %l1; cvt.rn.f32.f64 %f1, %d1; cvt.f64.f32 %d2, %f1; mov.b64 %l10, %d2;",
        |a, _, _| {
            let r = f64::from(f64::from_bits(a) as f32);
            if r.is_nan() { 0x7ff8_0000_0000_0000 } else { r.to_bits() }
        },
    );
    check32(
        "cvt.s64.s32 %l1, %r1; cvt.u32.u64 %r2, %l1; shr.u64 %l2, %l1, 32; cvt.u32.u64 %r3, %l2; xor.b32 %r10, %r2, %r3;",
        |a, _, _| a ^ ((a as i32) >> 31) as u32,
    );
}

/// Round to nearest even by the bits.
fn bf16(v: u32) -> u32 {
    if f32::from_bits(v).is_nan() { 0x7fff } else { (v + 0x7fff + (v >> 16 & 1)) >> 16 }
}

#[test]
fn double_precision() {
    let pre = "mov.b64 %d1, %l1; mov.b64 %d2, %l2; mov.b64 %d3, %l3;";
    let values = [1.0f64, -2.5, 0.1, 1e300, -1e-300, 3.0, 0.0, 7e15];
    let inputs: Vec<[u64; 3]> = (0..64).map(|i| [i, i / 8, i / 3].map(|j| values[j % 8].to_bits())).collect();
    for (op, f) in [
        ("add.f64", (|a, b, _| a + b) as fn(f64, f64, f64) -> f64),
        ("mul.rn.f64", |a, b, _| a * b),
        ("div.rn.f64", |a, b, _| a / b),
        ("fma.rn.f64", |a, b, c| a.mul_add(b, c)),
        ("max.f64", |a, b, _| a.max(b)),
    ] {
        let third = if op.starts_with("fma") { ", %d3" } else { "" };
        let body = format!("{pre} {op} %d10, %d1, %d2{third}; mov.b64 %l10, %d10;");
        for (v, got) in inputs.iter().zip(run64(&body, &inputs, 1)) {
            let [a, b, c] = v.map(f64::from_bits);
            let (want, got) = (f(a, b, c), f64::from_bits(got));
            assert!(got == want || got.is_nan() && want.is_nan(), "{op} {a} {b} {c}: {got}, want {want}");
        }
    }
}

#[test]
fn half_precision_pairs() {
    use half::f16;
    let v: Vec<[u32; 3]> = noise(192, 11)
        .chunks(6)
        .map(|c| {
            std::array::from_fn(|i| {
                let bits = |x: f32| u32::from(f16::from_f32(x * 40.0).to_bits());
                bits(c[2 * i]) | bits(c[2 * i + 1]) << 16
            })
        })
        .collect();
    // Exact in f64; one rounding at the end. The tested values have exact sums in f64.
    let pairwise = |f: &dyn Fn(f64, f64, f64) -> f64, a: u32, b: u32, c: u32| {
        (0..2).fold(0, |r, i| {
            let pick = |v: u32| f64::from(f16::from_bits((v >> (16 * i)) as u16).to_f32());
            let exact = f(pick(a), pick(b), pick(c));
            r | u32::from(nearest_f16(exact)) << (16 * i)
        })
    };
    check32_on("add.rn.f16x2 %r10, %r1, %r2;", &v, |a, b, c| pairwise(&|a, b, _| a + b, a, b, c));
    check32_on("mul.f16x2 %r10, %r1, %r2;", &v, |a, b, c| pairwise(&|a, b, _| a * b, a, b, c));
    check32_on("fma.rn.f16x2 %r10, %r1, %r2, %r3;", &v, |a, b, c| pairwise(&|a, b, c| a * b + c, a, b, c));
    check32_on("fma.rn.relu.f16x2 %r10, %r1, %r2, %r3;", &v, |a, b, c| {
        pairwise(&|a, b, c| (a * b + c).max(0.0), a, b, c)
    });
    check32_on("max.f16x2 %r10, %r1, %r2;", &v, |a, b, c| pairwise(&|a, b, _| a.max(b), a, b, c));
    check32_on("neg.f16x2 %r10, %r1;", &v, |a, _, _| a ^ 0x8000_8000);
    let b = |x: u32| f32::from_bits(x << 16);
    check32_on("mul.rn.bf16x2 %r10, %r1, %r2;", &floats(), |x, y, _| {
        let low = bf16_of(b(x & 0xffff) * b(y & 0xffff));
        low | bf16_of(b(x >> 16) * b(y >> 16)) << 16
    });
}

fn bf16_of(x: f32) -> u32 {
    // The product of two bf16 numbers is exact in f32 unless it is subnormal there, which these are not.
    bf16(x.to_bits())
}

/// The nearest f16 by search over its neighbours.
fn nearest_f16(x: f64) -> u16 {
    use half::f16;
    let guess = f16::from_f32(x as f32).to_bits();
    let candidates = [guess.wrapping_sub(1), guess, guess.wrapping_add(1)];
    let error = |bits: u16| (f64::from(f16::from_bits(bits).to_f32()) - x).abs();
    let usable = candidates.into_iter().filter(|b| f16::from_bits(*b).is_finite());
    usable.min_by(|p, q| error(*p).total_cmp(&error(*q)).then((p & 1).cmp(&(q & 1)))).unwrap_or(guess)
}

#[test]
fn unknown_text_is_an_error_that_names_it() {
    for (body, what) in [
        ("frobnicate.u32 %r10, %r1;", "unknown instruction `frobnicate.u32`"),
        ("add.wild.u32 %r10, %r1, %r2;", "unknown modifier `.wild` in `add.wild.u32`"),
        ("add.u32 %r10, %r99, %r2;", "unknown name `%r99`"),
        ("add.u32 %r10, %r1;", "takes [3] operands, found 2"),
        ("bra $nowhere;", "unknown label `$nowhere`"),
        ("add.u64 %l1, %r1, %l2;", "too small"),
    ] {
        let text = wrap(4, 1, body);
        let line = text.lines().position(|l| l == body).unwrap() + 1;
        let e = Module::parse(&text).unwrap_err().to_string();
        assert!(e.contains(what) && e.contains(&format!("PTX line {line} in `k`")), "{e}");
    }
}

#[test]
fn fma_is_rounded_once() {
    // The exact sums lie next to a tie of f32 by less than f64 can hold, or are subnormal.
    let tie = 1.0 + f32::EPSILON;
    let cases: Vec<[f32; 3]> = vec![
        [tie, 2f32.powi(-24), 1.0],
        [1.0, 2f32.powi(-24), 1.0],
        [-tie, 2f32.powi(-24), -1.0],
        [2f32.powi(-60), 2f32.powi(-60), 1.0 + 2f32.powi(-23)],
        [1.5 * 2f32.powi(-75), 2f32.powi(-74), 2f32.powi(-126)],
        [1.25 * 2f32.powi(-74), 2f32.powi(-75), 0.0],
        [3.0, 5.0, -15.0],
        [f32::MAX, 2.0, f32::NEG_INFINITY],
        [f32::MAX, 2.0, 0.0],
    ];
    let inputs: Vec<[u32; 3]> = cases.iter().map(|c| c.map(f32::to_bits)).collect();
    let got = run32("fma.rn.f32 %r10, %r1, %r2, %r3;", &inputs, 1);
    for (c, got) in cases.iter().zip(got) {
        assert_eq!(f32::from_bits(got), c[0].mul_add(c[1], c[2]), "{c:?}");
    }
}

#[test]
fn min_and_max_of_zeros_and_nan() {
    let bits = f32::to_bits;
    let inputs = [
        [bits(0.0), bits(-0.0), 0],
        [bits(-0.0), bits(0.0), 0],
        [0x7fc0_0001, bits(2.0), 0],
        [bits(2.0), 0x7fc0_0001, 0],
    ];
    let got = run32("min.f32 %r10, %r1, %r2; max.f32 %r11, %r1, %r2;", &inputs, 2);
    let want = [-0.0f32, 0.0, -0.0, 0.0, 2.0, 2.0, 2.0, 2.0].map(bits);
    assert_eq!(got, want);
}
