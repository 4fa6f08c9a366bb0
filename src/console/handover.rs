//! What the next process asks for: SHOW FDS with descriptors, and SHOW HANDOVER (ours).

use super::Order;
use super::session::Desk;
use super::show::{Rows, Topic, View};
use super::table::{self, Cell, Column, Formats, Type};

const COLUMNS: [Column; 3] = [("task", Type::Text), ("fd", Type::Int), ("state", Type::Bytes)];

/// The rows of SHOW FDS, for the daemon to send.
pub fn descriptors(view: &View<'_>, formats: &Formats, describe: bool) -> Order {
    let mut head = Vec::new();
    if describe {
        let columns = Topic::Fds.columns(view.engine.settings().compat_version);
        table::describe(&mut head, &columns, formats);
    }
    let Rows::Here(cells) = Topic::Fds.rows(view) else {
        return Order::HandOver { head, rows: Vec::new() };
    };
    let rows = cells.into_iter().filter_map(|row| {
        let Some(Cell::Int(descriptor)) = row.first() else {
            return None;
        };
        let mut bytes = Vec::new();
        table::row(&mut bytes, &row, formats);
        Some((*descriptor, bytes))
    });
    Order::HandOver { head, rows: rows.collect() }
}

/// Appends the whole answer to SHOW HANDOVER.
pub fn write(out: &mut Vec<u8>, desk: &Desk<'_>) {
    let formats = Formats::default();
    table::describe(out, &COLUMNS, &formats);
    for (kind, conn, told) in desk.engine.rows_to_hand_over(desk.moment.now) {
        // A connection that has no socket yet is not handed over.
        let descriptor = conn.map_or(Some(0), |conn| desk.outside.descriptor(conn));
        if let Some(descriptor) = descriptor {
            let row = [kind.word().into(), Cell::Int(descriptor), Cell::Bytes(told)];
            table::row(out, &row, &formats);
        }
    }
    table::complete(out, "SHOW");
}
