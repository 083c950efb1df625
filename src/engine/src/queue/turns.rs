//! Whose turn it is: a run of requests of one flow, charged together when it ends.

use super::{Class, ClassQueues, Flow, Pick, State, cost_of};
use crate::links::NIL;

/// The turn of a flow.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// [`NIL`]: it is nobody's turn. Its flow stays linked until the run ends, even if it has nothing left.
    pub(super) flow: u32,
    /// Cost that it may take still.
    left: u32,
    /// Cost that it took.
    charged: u32,
}

pub(super) const NO_RUN: Run = Run { flow: NIL, left: 0, charged: 0 };

impl ClassQueues {
    /// Takes what waits alone.
    #[inline]
    pub fn pop_alone(&mut self) -> Option<Pick> {
        if self.alone == NIL {
            return None;
        }
        let record = std::mem::replace(&mut self.alone, NIL);
        self.waiting = [0; 3];
        Some(Pick { record, class: self.entries[record as usize].class, cost: 0 })
    }

    /// Begins the turn of the session of `class` that is next, and of its flow that is: for requests that cost `left`, the
    /// last of which may cost more. The run before has ended, and the class has a request that may be served.
    pub fn begin_run(&mut self, class: Class, left: u32) {
        debug_assert!(self.run.flow == NIL && self.alone == NIL);
        let Some(session) = self.fair[class.index()].first() else {
            unreachable!("{class:?} has nothing to serve")
        };
        let flow = self.sessions[session as usize].flows[class.index()].head;
        self.run = Run { flow, left, charged: 0 };
    }

    /// Takes the next record of the run.
    #[inline]
    pub fn pop(&mut self) -> Option<Pick> {
        if self.run.left == 0 {
            return None;
        }
        let flow = &mut self.flows[self.run.flow as usize];
        if flow.len == 0 {
            return None;
        }
        let (record, class) = (flow.head, flow.class);
        let entry = &self.entries[record as usize];
        let cost = cost_of(entry.bytes);
        flow.head = entry.next;
        flow.len -= 1;
        self.waiting[class.index()] -= 1;
        self.run.left = self.run.left.saturating_sub(cost);
        self.run.charged += cost;
        Some(Pick { record, class, cost })
    }

    /// It is somebody's turn.
    #[inline]
    pub fn has_run(&self) -> bool {
        self.run.flow != NIL
    }

    /// The run is over: its session is charged. Returns the class and the cost.
    pub fn end_run(&mut self) -> Option<(Class, u32)> {
        let Run { flow: id, charged, .. } = std::mem::replace(&mut self.run, NO_RUN);
        let Flow { len, next, session, class, .. } = *self.flows.get(id as usize)?;
        if charged > 0 {
            self.fair[class.index()].charge(session, charged);
        }
        if len == 0 {
            self.unlink(id);
        } else if charged > 0 && next != NIL {
            self.rotate(id);
        }
        Some((class, charged))
    }

    /// A record that was popped was not served. True: its run has ended, and its class was charged.
    pub fn refund(&mut self, pick: Pick) -> bool {
        let entry = &self.entries[pick.record as usize];
        if entry.flow == self.run.flow && self.run.charged >= pick.cost {
            self.run.charged -= pick.cost;
            self.run.left += pick.cost;
            return false;
        }
        let flow = &self.flows[entry.flow as usize];
        self.fair[flow.class.index()].refund(flow.session, pick.cost);
        true
    }

    /// Undoes [`Self::pop`], after [`Self::refund`]: the newest first, if there are more. A flow that was shut since is open
    /// then: this one need not wait.
    pub fn put_back(&mut self, record: u32) {
        let id = self.insert_front(record);
        let flow = &mut self.flows[id as usize];
        let linked = flow.state == State::Open && (flow.len > 1 || self.run.flow == id);
        flow.state = State::Open;
        if !linked {
            self.link(id);
        }
    }
}
