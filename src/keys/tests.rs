use super::{Kind, NONE, Range, Typed, check, leaves, section, sections};
use toml::{Table, Value};

section! {
    /// What a tree has.
    pub struct TreeSection {
        /// Its leaves,
        /// all of them.
        pub leaves: usize = 7, Range::Whole(1, 9);
        /// Its branches.
        pub branches: [usize; 2] = [4, 6];
        /// Birds on each branch.
        pub birds: [usize; 2] = [2, 3], Range::Divides("branches") => may_change;
        /// Its height.
        pub height: Option<f64> = None, Range::Positive;
        /// Its roots.
        pub roots: RootSection = RootSection::default();
    }
}

section! {
    /// What roots have.
    pub struct RootSection {
        /// How deep they are.
        pub depth: [f64; 2] = [0.5, 1.0], Range::Spread(2.0);
        /// What they stand in.
        pub soil: String = "sand".into(), Range::OneOf(&["sand", "clay"]);
    }
}

fn tree(sets: &str) -> Table {
    let mut all = Table::try_from(TreeSection::default()).unwrap();
    for (name, value) in sets.parse::<Table>().unwrap() {
        match (all.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(given)) => below.extend(given),
            (_, value) => drop(all.insert(name, value)),
        }
    }
    all
}

fn refused(sets: &str) -> String {
    check(TreeSection::KEYS, &tree(sets), "").unwrap_err().to_string()
}

#[test]
fn a_declaration_gives_struct_default_keys_and_sections() {
    assert_eq!(TreeSection::default().roots.soil, "sand");
    let names: Vec<_> =
        leaves(TreeSection::KEYS, &Table::new(), "").into_iter().map(|k| (k.name, k.key)).collect();
    let listed: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(listed, ["leaves", "branches", "birds", "height", "roots.depth", "roots.soil"]);
    assert_eq!(names[0].1.meaning(), "Its leaves, all of them");
    assert_eq!(names[5].1.meaning(), "What they stand in: sand, clay");
    assert!(names[3].1.optional && !names[0].1.optional);
    assert!(names[2].1.may_change && !names[0].1.may_change);
    assert_eq!(sections(TreeSection::KEYS, ""), [("roots".to_owned(), " Its roots.")]);
    assert!(matches!(TreeSection::KIND, Kind::Section(_)));
    assert_ne!(NONE, "");
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    check(TreeSection::KEYS, &tree(""), "").unwrap();
    for (sets, key, message) in [
        ("leaves = 10", "leaves", "10 must be between 1 and 9"),
        ("birds = [2, 4]", "birds", "4 does not divide `branches` = 6: use one of 1, 2, 3, 6"),
        ("height = 0.0", "height", "more than 0"),
        ("height = nan", "height", "more than 0"),
        ("roots = { depth = [1.0, 0.5] }", "roots.depth", "a smallest and a largest"),
        ("roots = { depth = [1.0, nan] }", "roots.depth", "a smallest and a largest"),
        ("roots = { soil = 'peat' }", "roots.soil", "one of sand, clay"),
    ] {
        let e = refused(sets);
        assert!(e.contains(&format!("`{key}`")) && e.contains(message), "{sets}: {e}");
    }
}

#[test]
fn a_section_checks_itself_under_its_name() {
    let mut roots = RootSection { depth: [3.0, 4.0], ..RootSection::default() };
    let e = roots.check("garden.roots").unwrap_err().to_string();
    assert!(e.contains("`garden.roots.depth`"), "{e}");
    roots.depth = [1.0, 2.0];
    roots.check("garden.roots").unwrap();
    let tree = TreeSection { branches: [3, 3], ..TreeSection::default() };
    let e = tree.check("garden").unwrap_err().to_string();
    assert!(e.contains("`garden.birds`") && e.contains("`garden.branches` = 3"), "{e}");
}

/// Each range at its borders: what it takes, and what it refuses.
#[test]
fn every_range_has_its_borders() {
    let cases: &[(Range, &[&str], &[&str])] = &[
        (Range::Any, &["1", "-1", "'x'"], &[]),
        (Range::Given("say"), &["'x'"], &["''"]),
        (Range::Positive, &["1", "1e-300"], &["0", "-1.0", "inf", "nan"]),
        (Range::NotNegative, &["0", "0.0"], &["-1e-300", "inf", "nan"]),
        (Range::AtLeast(2), &["2", "9223372036854775807"], &["1", "0"]),
        (Range::Whole(0, 3), &["0", "3", "[1, 2]"], &["4", "[1, 4]", "-1"]),
        (Range::UpTo(0.5), &["0", "0.5"], &["0.6", "-0.1", "nan"]),
        (Range::OffOr([0.5, 2.0]), &["0", "0.5", "2.0"], &["0.4", "2.1", "-1", "nan"]),
        (Range::BelowOne, &["0.0", "0.999"], &["1.0", "-0.1", "nan"]),
        (Range::Inside(0.75), &["0.1"], &["0.0", "1.0", "nan"]),
        (Range::Spread(1.0), &["[0.5, 0.5]"], &["[0.0, 1.0]", "[0.5, 1.5]", "[nan, 1.0]"]),
        (Range::Pixels(16), &["16", "[4096, 32]"], &["0", "8", "100", "4112", "[16, 17]"]),
        (Range::Divides("six"), &["1", "6"], &["0", "4", "12"]),
        (Range::Below("six"), &["0", "5"], &["6"]),
    ];
    let beside: Table = "six = 6".parse().unwrap();
    for (range, good, bad) in cases {
        for (texts, ok) in [(good, true), (bad, false)] {
            for text in *texts {
                let value: Value = text.parse().unwrap();
                let result = range.check(&value, &beside, &str::to_owned);
                assert_eq!(result.is_ok(), ok, "{range:?} of {text}: {result:?}");
            }
        }
    }
}
