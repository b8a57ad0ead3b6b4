//! Ranks as threads of one process, which meet as processes do and sum by the ring over TCP.

use saip_engine::backend::Collective;
use saip_engine::dist::{Deadlines, Hello, Launch, Meeting, meet};

/// A link for each of `world` ranks.
pub fn links(world: usize) -> Vec<Box<dyn Collective>> {
    let place = tempfile::tempdir().unwrap();
    let launch = |rank| Launch {
        rank,
        world,
        local_rank: rank,
        local_world: world,
        launcher: "a test",
        id: String::new(),
        meeting: Meeting::File(place.path().to_owned()),
    };
    let (hello, deadlines) = (Hello { device: "cpu".to_owned(), ..Hello::default() }, Deadlines::default());
    let met = |rank| meet(&launch(rank), &hello, &deadlines).unwrap();
    let met = &met;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || met(rank))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}
