//! Pools that take each other's places: whoever is evicted has served somebody, and nobody is kept
//! out for ever, be it that he needs places of two kinds at once.

mod common;

use common::desk::Desk;
use ringbouncer::keys::Conn;
use ringbouncer::session::client::State;
use std::time::Duration;

const STEP: Duration = Duration::from_millis(50);

/// Clients that ask again as soon as they have their answer, in pools that have one place together
/// or each their own.
struct Town {
    desk: Desk,
    clients: Vec<Conn>,
    opened: usize,
    answered: usize,
}

impl Town {
    fn new(settings: &str) -> Town {
        let desk = Desk::new(&format!(
            "[databases]\napp = host=127.0.0.1\nother = host=127.0.0.1\n\
             [pgbouncer]\npool_mode = transaction\nquery_wait_timeout = 0\n\
             server_check_query =\n{settings}"
        ));
        Town { desk, clients: Vec::new(), opened: 0, answered: 0 }
    }

    fn join(&mut self, user: &str, database: &str) -> Conn {
        let client = self.desk.client(user, database);
        self.clients.push(client);
        client
    }

    fn server_of(&self, client: Conn) -> Option<Conn> {
        let Conn::Client(key) = client else { panic!("a client") };
        self.desk.engine.house().clients.get(key)?.server().map(Conn::Server)
    }

    fn is_idle(&self, client: Conn) -> bool {
        let Conn::Client(key) = client else { panic!("a client") };
        let client = self.desk.engine.house().clients.get(key);
        client.is_some_and(|client| matches!(client.state, State::Idle))
    }

    /// One of those who are served gets his answer; all who have theirs ask again.
    fn step(&mut self, turn: usize) -> Option<Conn> {
        self.desk.after(STEP);
        while !self.desk.dialled.is_empty() {
            self.desk.server();
            self.opened += 1;
        }
        let served: Vec<Conn> =
            self.clients.iter().copied().filter(|c| self.server_of(*c).is_some()).collect();
        let done = (!served.is_empty()).then(|| served[turn % served.len()]);
        if let Some(server) = done.and_then(|client| self.server_of(client)) {
            self.desk.answer(server);
            self.answered += 1;
        }
        for client in self.clients.clone() {
            self.desk.take(client);
            if self.is_idle(client) {
                self.desk.ask(client);
            }
        }
        done
    }

    /// Until this client has had its answer; in how many steps.
    fn until_served(&mut self, client: Conn) -> usize {
        for turn in 0..4000 {
            if self.step(turn) == Some(client) {
                return turn;
            }
        }
        panic!("kept out: {} answers, {} servers", self.answered, self.opened);
    }
}

/// Alice's two pools share her one place, and two databases have one place each: a client that needs
/// both gets them, although neither is ever free while the other is.
#[test]
fn who_needs_two_places_is_not_kept_out_for_ever() {
    for order in 0..2 {
        let mut town = Town::new("max_db_connections = 1\nmax_user_connections = 1");
        let mut crowds = [("alice", "app"), ("bob", "other")];
        crowds.rotate_left(order);
        for (user, database) in crowds {
            (0..3).for_each(|_| _ = town.join(user, database));
        }
        (0..100).for_each(|turn| _ = town.step(turn));
        for _ in 0..3 {
            let (answers, opened) = (town.answered, town.opened);
            let late = town.join("alice", "other");
            let turns = town.until_served(late);
            assert!(turns < 1000, "{turns} steps");
            // Nearly every step is an answer: few servers are opened, and each is worth it.
            let (answers, opened) = (town.answered - answers, town.opened - opened);
            assert!(answers * 2 > turns, "{answers} answers in {turns} steps");
            assert!(opened * 4 < turns.max(40), "{opened} servers in {turns} steps");
            town.clients.retain(|client| *client != late);
            town.desk.handle(ringbouncer::engine::io::Input::ReadClosed { conn: late });
            town.desk.perform();
        }
    }
}

/// Two pools with clients that always wait, and one place: they take turns of a second, and no server
/// ends before it has served.
#[test]
fn a_new_server_serves_before_it_makes_room() {
    for settings in ["max_db_connections = 1", "max_user_connections = 1"] {
        let is_db = settings.contains("db");
        let mut town = Town::new(settings);
        let mut first: Vec<Conn> = (0..3).map(|_| town.join("alice", "app")).collect();
        let second = if is_db { ("bob", "app") } else { ("alice", "other") };
        first.extend((0..3).map(|_| town.join(second.0, second.1)));
        let mut served = vec![0; first.len()];
        for turn in 0..2000 {
            let opened = town.opened;
            if let Some(done) = town.step(turn) {
                served[first.iter().position(|client| *client == done).expect("one of them")] += 1;
            }
            // (The first ones bring the welcome alone.)
            assert!(
                turn < 10 || town.opened - opened <= 1,
                "one evicts the other's, which has served nobody"
            );
        }
        assert!(served.iter().all(|served| *served > 50), "{served:?}");
        assert!(town.opened < 200, "{} servers in 100 seconds", town.opened);
    }
}
