//! SHOW CONFIG: the settings as they are.

use super::View;
use crate::config::settings::TABLE;
use crate::console::table::{Cell, Column, Row, Type::Text};

pub const COLUMNS: [Column; 4] =
    [("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];

/// As PgBouncer: what is ours alone is not among them, for tools know their number.
pub fn rows(view: &View<'_>) -> Vec<Row> {
    let settings = view.engine.settings();
    let known = TABLE.iter().filter(|setting| !setting.ours);
    known
        .map(|setting| {
            let changeable = if setting.changeable { "yes" } else { "no" };
            vec![
                setting.name.into(),
                Cell::maybe((setting.show)(settings)),
                setting.default.map_or(Cell::Null, Cell::from),
                changeable.into(),
            ]
        })
        .collect()
}
