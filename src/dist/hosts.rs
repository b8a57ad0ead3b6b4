//! SLURM's lists of hosts, such as `n[1-3,7],gpu-[001-004],rack[1-2]node[3,5]`: the zeros before a number are a part of the name.

/// The first host of `list`; None where it is not such a list.
pub(super) fn first(list: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ']', ',']).unwrap_or(rest.len());
        name.push_str(&rest[..end]);
        let Some(inner) = rest[end..].strip_prefix('[') else {
            let whole = !rest[end..].starts_with(']') && !name.is_empty();
            return (whole && !name.contains(char::is_whitespace)).then_some(name);
        };
        let close = inner.find(']')?;
        let numbers = inner[..close].split(',').next()?;
        let (start, end) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let is_number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        if !is_number(start) || !is_number(end) {
            return None;
        }
        name.push_str(start);
        rest = &inner[close + 1..];
    }
}

/// How many tasks run on node `node` by SLURM's `counts`, such as `4(x2),3`: two nodes with 4, then one with 3.
pub(super) fn tasks(counts: &str, mut node: usize) -> Option<usize> {
    for group in counts.split(',') {
        let (count, nodes) = match group.split_once("(x") {
            Some((count, nodes)) => (count, nodes.strip_suffix(')')?.parse().ok()?),
            None => (group, 1),
        };
        if node < nodes {
            return count.parse().ok();
        }
        node -= nodes;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_keeps_its_zeros() {
        for (list, host) in [
            ("node7", Some("node7")),
            ("n[1-3,7],gpu-[001-004]", Some("n1")),
            ("gpu-[001-004],n[1-3,7]", Some("gpu-001")),
            ("gpu-[0010,0007]", Some("gpu-0010")),
            ("rack[2-3]node[05,7-9]", Some("rack2node05")),
            ("a[1-2]-b[09].example.org,c", Some("a1-b09.example.org")),
            ("login.example.org,n1", Some("login.example.org")),
            ("[3-4]", Some("3")),
            (" n1 ", Some("n1")),
            ("", None),
            (",n1", None),
            ("n[1-3", None),
            ("n]1", None),
            ("n[]", None),
            ("n[a-b]", None),
            ("n[1-]", None),
            ("n[-]x", None),
            ("n 1", None),
        ] {
            assert_eq!(first(list).as_deref(), host, "{list}");
        }
    }

    #[test]
    fn tasks_are_counted_by_node() {
        let counts = |node| tasks("4(x2),3,1(x100)", node);
        assert_eq!([0, 1, 2, 3, 102].map(counts), [Some(4), Some(4), Some(3), Some(1), Some(1)]);
        assert_eq!(counts(103), None);
        assert_eq!(tasks("8", 0), Some(8));
        for bad in ["", "x", "4(x", "4(x2", "4(xy)", "4(x99999999999999999999999)"] {
            assert_eq!(tasks(bad, 0), None, "{bad}");
        }
    }
}
