//! What the console wants of the process: the same as signals do, with an answer.

use crate::console::{Answer, Order};
use crate::daemon::cli::Options;
use crate::daemon::service;
use crate::engine::operate::End;
use crate::keys::ClientKey;
use crate::net::EventLoop;
use crate::pool::mode::Awaited;
use crate::session::farewell::Reason;
use crate::sys;
use std::ops::ControlFlow;
use std::time::Instant;

/// Does it, and answers.
pub fn obey(
    event_loop: &mut EventLoop,
    (client, order): (ClientKey, Order),
    options: &Options,
) -> ControlFlow<()> {
    let answer = match order {
        Order::Reload if service::reload(event_loop, options) => Answer::Done("RELOAD".to_owned()),
        Order::Reload => {
            log::error!("RELOAD Failed, see logs for more details");
            let text = "RELOAD failed, see logs for additional details".to_owned();
            Answer::Failed { code: "F0000", text }
        }
        Order::Set { key, value } if service::set(event_loop, options, &key, &value) => {
            let tag = format!("SET {key}={value}");
            let is_tls = key.contains("_tls_") || key.contains("_tls13_");
            match is_tls && service::renew_tls(event_loop).is_err() {
                true => Answer::DoneWith {
                    notice: "TLS settings could not be applied, still using old configuration",
                    tag,
                },
                false => Answer::Done(tag),
            }
        }
        Order::Set { .. } => Answer::Failed { code: "08P01", text: "SET failed".to_owned() },
        Order::HandOver { head, rows } => match event_loop.hand_over(client, &head, &rows) {
            Ok(()) => Answer::Done("SHOW".to_owned()),
            Err(error) => {
                log::error!("handing sockets over failed: {}", sys::error_text(&error));
                event_loop.engine.end_console(client, Reason::DEAD_ADMIN, Instant::now());
                return ControlFlow::Continue(());
            }
        },
        Order::Shutdown(End::AtOnce) => return ControlFlow::Break(()),
        Order::Shutdown(End::Servers) => shut_down(event_loop, Awaited::Servers),
        Order::Shutdown(End::Clients) => shut_down(event_loop, Awaited::Clients),
    };
    event_loop.answer(client, answer);
    ControlFlow::Continue(())
}

fn shut_down(event_loop: &mut EventLoop, awaited: Awaited) -> Answer {
    service::shut_down(event_loop, awaited, Instant::now());
    Answer::Done("SHUTDOWN".to_owned())
}
