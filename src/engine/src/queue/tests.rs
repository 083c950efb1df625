use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const READ: Arrival =
    Arrival { queue: 0, volume: Some(0), class: Class::Read, writes: false, bytes: 4096, limited: false };

/// Each queue is a session of its own, with two volumes.
fn queues(count: u32, records: u32) -> ClassQueues {
    let mut queues = ClassQueues::new(records);
    for queue in 0..count {
        let session = queues.add_session(100);
        queues.add_queue(queue, session, &[Some(VolumeId(0)), Some(VolumeId(1))]);
    }
    queues
}

fn push(queues: &mut ClassQueues, record: u32, arrival: Arrival) {
    if record.is_multiple_of(2) {
        return queues.push_new(record, &arrival);
    }
    queues.arrive(record, &arrival);
    queues.push_back(record);
}

/// The first of a run of one, which has not ended.
fn begin(queues: &mut ClassQueues, class: Class) -> Option<Pick> {
    queues.join_others();
    queues.backlog()[class.index()].then(|| queues.begin_run(class, 1))?;
    queues.pop()
}

fn pop(queues: &mut ClassQueues, class: Class) -> Option<u32> {
    let pick = begin(queues, class)?;
    assert_eq!(queues.end_run(), Some((class, pick.cost)));
    Some(pick.record)
}

fn shut_first(queues: &mut ClassQueues, class: Class) -> Option<u32> {
    let pick = begin(queues, class)?;
    queues.refund(pick);
    queues.end_run();
    queues.shut(pick.record);
    Some(pick.record)
}

fn drain(queues: &mut ClassQueues, class: Class) -> Vec<u32> {
    std::iter::from_fn(|| pop(queues, class)).collect()
}

#[test]
fn sessions_take_turns_however_much_one_has_waiting() {
    let mut queues = queues(2, 16);
    (0..6).for_each(|record| push(&mut queues, record, READ));
    (10..13).for_each(|record| push(&mut queues, record, Arrival { queue: 1, ..READ }));
    let order = drain(&mut queues, Class::Read);
    for pair in order[..6].chunks(2) {
        assert_ne!(pair[0] < 10, pair[1] < 10, "{order:?}");
    }
    assert_eq!(order[6..], [3, 4, 5]);
}

#[test]
fn a_session_has_one_share_however_many_queues_it_has() {
    let mut queues = ClassQueues::new(64);
    let many = queues.add_session(100);
    (0..4).for_each(|queue| queues.add_queue(queue, many, &[Some(VolumeId(0))]));
    let one = queues.add_session(100);
    queues.add_queue(4, one, &[Some(VolumeId(0))]);
    (0..20).for_each(|record| push(&mut queues, record, Arrival { queue: record % 5, ..READ }));
    let first: Vec<u32> = drain(&mut queues, Class::Read)[..8].iter().map(|record| record % 5).collect();
    assert_eq!(first.iter().filter(|queue| **queue == 4).count(), 4, "{first:?}");
    assert!((0..4).all(|queue| first.contains(&queue)), "its queues take turns: {first:?}");
}

#[test]
fn a_volume_that_waits_holds_back_nothing_else() {
    let mut queues = queues(1, 16);
    (0..2).for_each(|record| push(&mut queues, record, READ));
    push(&mut queues, 2, Arrival { volume: Some(1), ..READ });
    let first = shut_first(&mut queues, Class::Read).unwrap();
    assert_eq!(first, 0);
    assert_eq!(drain(&mut queues, Class::Read), [2]);
    assert_eq!(queues.backlog(), [false; 3]);
    assert!(!queues.is_empty());
    assert!(queues.reopen(first));
    assert_eq!(drain(&mut queues, Class::Read), [0, 1]);
}

#[test]
fn what_is_put_back_was_not_served() {
    let mut queues = queues(2, 8);
    (0..2).for_each(|record| push(&mut queues, record, READ));
    (2..4).for_each(|record| push(&mut queues, record, Arrival { queue: 1, ..READ }));
    for _ in 0..10 {
        let pick = begin(&mut queues, Class::Read).unwrap();
        assert!(!queues.refund(pick));
        queues.put_back(pick.record);
        queues.end_run();
    }
    let order = drain(&mut queues, Class::Read);
    assert_eq!(order.len(), 4);
    assert_ne!(order[0] < 2, order[1] < 2, "nobody was charged: {order:?}");
    let place = |record| order.iter().position(|other| *other == record);
    assert!(place(0) < place(1) && place(2) < place(3), "{order:?}");
}

#[test]
fn a_run_is_charged_when_it_ends() {
    let mut queues = queues(2, 16);
    (0..6).for_each(|record| push(&mut queues, record, READ));
    (10..14).for_each(|record| push(&mut queues, record, Arrival { queue: 1, ..READ }));
    queues.begin_run(Class::Read, 3);
    let run: Vec<u32> = std::iter::from_fn(|| queues.pop()).map(|pick| pick.record).collect();
    assert_eq!(run, [0, 1, 2]);
    assert_eq!(queues.end_run(), Some((Class::Read, 3)));
    let order = drain(&mut queues, Class::Read);
    assert_eq!(order[..3], [10, 11, 12], "the other session catches up");
    assert_eq!(order[5..], [4, 5]);
}

#[test]
fn what_is_put_back_opens_its_flow() {
    let mut queues = queues(1, 8);
    (0..3).for_each(|record| push(&mut queues, record, READ));
    queues.begin_run(Class::Read, 2);
    let [first, second] = [(); 2].map(|()| queues.pop().unwrap());
    queues.refund(second);
    queues.end_run();
    queues.shut(second.record);
    assert!(queues.refund(first), "its run has ended");
    queues.put_back(first.record);
    assert!(!queues.reopen(first.record), "it is open");
    assert_eq!(drain(&mut queues, Class::Read), [0, 1, 2]);
}

#[test]
fn what_is_alone_is_not_charged() {
    let mut queues = queues(2, 8);
    for _ in 0..100 {
        queues.push_new(0, &READ);
        assert_eq!(queues.backlog(), [false, true, false]);
        assert_eq!(queues.pop_alone(), Some(Pick { record: 0, class: Class::Read, cost: 0 }));
        assert!(queues.is_empty());
    }
    (0..2).for_each(|record| push(&mut queues, record, READ));
    assert_eq!(queues.pop_alone(), None, "another one came");
    (2..4).for_each(|record| push(&mut queues, record, Arrival { queue: 1, ..READ }));
    assert!(drain(&mut queues, Class::Read)[..2].iter().any(|record| *record < 2));
}

#[test]
fn what_goes_back_after_it_was_alone_is_next() {
    let mut queues = queues(1, 8);
    queues.push_new(0, &READ);
    let alone = queues.pop_alone().unwrap();
    queues.put_back(alone.record);
    queues.push_new(1, &READ);
    assert_eq!(drain(&mut queues, Class::Read), [0, 1]);
}

#[test]
fn flows_of_queues_that_went_are_used_again() {
    let mut queues = queues(3, 8);
    let flows = queues.flows.len();
    assert!(queues.remove_queue(1).is_some());
    assert_eq!(queues.remove_queue(1), None);
    for _ in 0..100 {
        let session = queues.add_session(1);
        queues.add_queue(1, session, &[Some(VolumeId(7)), None]);
        push(&mut queues, 0, Arrival { queue: 1, volume: None, ..READ });
        assert_eq!(pop(&mut queues, Class::Read), Some(0));
        assert_eq!(queues.remove_queue(1), Some(session));
    }
    assert_eq!(queues.flows.len(), flows);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, u32, bool, bool),
    PushFront(u8, u32),
    Pop(u8),
    PopAlone,
    PutBack(u8),
    Shut(u8),
    ReopenAll,
    Remove(u8, u32, usize),
    DropQueue(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3u8, 0..5u32, any::<bool>(), any::<bool>())
            .prop_map(|(class, queue, volume, writes)| Step::Push(class, queue, volume, writes)),
        1 => (0..3u8, 0..5u32).prop_map(|(class, queue)| Step::PushFront(class, queue)),
        6 => (0..3u8).prop_map(Step::Pop),
        2 => Just(Step::PopAlone),
        1 => (0..3u8).prop_map(Step::PutBack),
        1 => (0..3u8).prop_map(Step::Shut),
        1 => Just(Step::ReopenAll),
        2 => (0..3u8, 0..5u32, any::<usize>())
            .prop_map(|(class, queue, place)| Step::Remove(class, queue, place)),
        1 => (0..5u32).prop_map(Step::DropQueue),
    ];
    prop::collection::vec(step, 0..400)
}

/// One `VecDeque` per flow: by queue, volume, then stream.
type Model = Vec<[[VecDeque<u32>; 4]; 2]>;

fn stream(class: u8, writes: bool) -> usize {
    match class {
        0 => usize::from(writes),
        class => usize::from(class) + 1,
    }
}

fn find(model: &mut Model, record: u32) -> Option<(&mut VecDeque<u32>, usize)> {
    let flows = model.iter_mut().flatten().flatten();
    flows.into_iter().find_map(|flow| {
        let place = flow.iter().position(|other| *other == record)?;
        Some((flow, place))
    })
}

proptest! {
    /// Nothing is lost, nothing doubled, each flow is a FIFO, and what is shut is not served.
    #[test]
    fn behaves_as_fifos(steps in steps()) {
        const RECORDS: u32 = 64;
        let mut queues = queues(5, RECORDS);
        let mut free: Vec<u32> = (0..RECORDS).collect();
        let mut model: Model = (0..5).map(|_| Default::default()).collect();
        let mut shut: Vec<u32> = Vec::new();
        for step in steps {
            match step {
                Step::Push(class, queue, volume, writes) => if let Some(record) = free.pop() {
                    let volume = u16::from(volume);
                    let class_of = Class::ALL[usize::from(class)];
                    push(&mut queues, record, Arrival { queue, volume: Some(volume), class: class_of, writes, ..READ });
                    model[queue as usize][usize::from(volume)][stream(class, writes)].push_back(record);
                },
                Step::PushFront(class, queue) => if let Some(record) = free.pop() {
                    let class_of = Class::ALL[usize::from(class)];
                    queues.arrive(record, &Arrival { queue, class: class_of, ..READ });
                    let flow = &mut model[queue as usize][0][stream(class, false)];
                    shut.retain(|head| flow.front() != Some(head));
                    queues.push_front(record);
                    flow.push_front(record);
                },
                Step::Pop(class) => match pop(&mut queues, Class::ALL[usize::from(class)]) {
                    Some(record) => {
                        let (flow, place) = find(&mut model, record).expect("it waited");
                        prop_assert_eq!(place, 0);
                        prop_assert!(!shut.contains(&record));
                        flow.pop_front();
                        free.push(record);
                    }
                    None => {
                        let flows = model.iter().flatten().flat_map(|streams| streams.iter().enumerate());
                        for (index, flow) in flows {
                            let of_class = index.max(1) - 1 == usize::from(class);
                            prop_assert!(!of_class || flow.front().is_none_or(|head| shut.contains(head)));
                        }
                    }
                },
                Step::PopAlone => if let Some(pick) = queues.pop_alone() {
                    prop_assert!(queues.is_empty());
                    find(&mut model, pick.record).expect("it waited").0.pop_front();
                    free.push(pick.record);
                },
                Step::PutBack(class) => if let Some(pick) = begin(&mut queues, Class::ALL[usize::from(class)]) {
                    prop_assert!(!queues.refund(pick));
                    queues.put_back(pick.record);
                    queues.end_run();
                },
                Step::Shut(class) => if let Some(record) = shut_first(&mut queues, Class::ALL[usize::from(class)]) {
                    shut.push(record);
                },
                Step::ReopenAll => for record in shut.drain(..) {
                    prop_assert!(queues.reopen(record));
                },
                Step::Remove(class, queue, place) => {
                    let flow = &mut model[queue as usize][0][stream(class, false)];
                    if !flow.is_empty() {
                        shut.retain(|head| flow.front() != Some(head));
                        let record = flow.remove(place % flow.len()).unwrap();
                        queues.remove(record);
                        free.push(record);
                    }
                }
                Step::DropQueue(queue) => {
                    while let Some(record) = queues.first_of_queue(queue) {
                        queues.remove(record);
                        let (flow, _) = find(&mut model, record).expect("it waited");
                        flow.pop_front();
                        shut.retain(|head| *head != record);
                        free.push(record);
                    }
                    prop_assert!(model[queue as usize].iter().flatten().all(VecDeque::is_empty));
                }
            }
            for class in Class::ALL {
                let streams = if class == Class::Prio { 0..2 } else { class.index() + 1..class.index() + 2 };
                let waiting: usize =
                    model.iter().flatten().map(|flows| flows[streams.clone()].iter().map(VecDeque::len).sum::<usize>()).sum();
                prop_assert_eq!(queues.len(class) as usize, waiting);
            }
        }
    }
}
