//! What a person does with the rows.

use super::{
    Sample,
    rows::{self, BackendRow, Order, ServiceRow},
};
use crate::inspect::Filter;

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Back,
    Erase,
    Quit,
    Letter(char),
}

/// Rows that a page has.
const PAGE: usize = 10;

#[derive(Debug)]
pub(crate) struct Screen {
    before: Sample,
    now: Sample,
    filter: Filter,
    pub(crate) order: Order,
    /// The Service whose backends are shown.
    pub(crate) of: Option<String>,
    /// The name of the row that is chosen: it stays chosen wherever the row goes.
    chosen: Option<String>,
    /// A part of the name that is looked for.
    pub(crate) search: String,
    pub(crate) is_typing: bool,
    pub(crate) is_paused: bool,
    pub(crate) is_over: bool,
}

impl Screen {
    pub(crate) fn new(first: Sample, filter: Filter, order: Order) -> Self {
        Self {
            before: Sample::default(),
            now: first,
            filter,
            order,
            of: None,
            chosen: None,
            search: String::new(),
            is_typing: false,
            is_paused: false,
            is_over: false,
        }
    }

    pub(crate) fn take(&mut self, sample: Sample) {
        if !self.is_paused {
            self.before = std::mem::replace(&mut self.now, sample);
        }
    }

    pub(crate) fn services(&self) -> Vec<ServiceRow> {
        let mut rows = rows::services(&self.before, &self.now, &self.filter, self.order);
        rows.retain(|row| row.service.contains(&self.search));
        rows
    }

    pub(crate) fn backends(&self, service: &str) -> Vec<BackendRow> {
        rows::backends(&self.before, &self.now, service)
    }

    /// Which of the Services is chosen.
    pub(crate) fn place(&self, services: &[ServiceRow]) -> usize {
        let is_it = |row: &ServiceRow| Some(&row.service) == self.chosen.as_ref();
        services.iter().position(is_it).unwrap_or(0)
    }

    fn go(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let services = self.services();
        let last = services.len().saturating_sub(1);
        let to = to(self.place(&services), last).min(last);
        self.chosen = services.get(to).map(|row| row.service.clone());
    }

    pub(crate) fn press(&mut self, key: Key) {
        if key == Key::Quit {
            self.is_over = true;
            return;
        }
        if self.is_typing {
            self.type_in(key);
            return;
        }
        match key {
            Key::Up => self.go(|at, _| at.saturating_sub(1)),
            Key::Down => self.go(|at, _| at + 1),
            Key::PageUp => self.go(|at, _| at.saturating_sub(PAGE)),
            Key::PageDown => self.go(|at, _| at + PAGE),
            Key::Home => self.go(|_, _| 0),
            Key::End => self.go(|_, last| last),
            Key::Enter => {
                let services = self.services();
                let row = services.get(self.place(&services));
                self.of = row.map(|row| row.service.clone());
                self.chosen.clone_from(&self.of);
            }
            Key::Back if self.of.is_some() => self.of = None,
            Key::Back if !self.search.is_empty() => self.search.clear(),
            Key::Back | Key::Quit | Key::Letter('q') => self.is_over = true,
            Key::Letter('k') => self.press(Key::Up),
            Key::Letter('j') => self.press(Key::Down),
            Key::Letter('s') => self.order = self.order.next(),
            Key::Letter('p') => self.is_paused = !self.is_paused,
            Key::Letter('/') if self.of.is_none() => self.is_typing = true,
            Key::Letter(_) | Key::Erase => {}
        }
    }

    fn type_in(&mut self, key: Key) {
        match key {
            Key::Letter(letter) => self.search.push(letter),
            Key::Erase => {
                self.search.pop();
            }
            Key::Enter => self.is_typing = false,
            Key::Back => {
                self.is_typing = false;
                self.search.clear();
            }
            Key::Up
            | Key::Down
            | Key::PageUp
            | Key::PageDown
            | Key::Home
            | Key::End
            | Key::Quit => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rows::tests::sample, *};

    fn screen() -> Screen {
        let first = sample(
            0,
            &[
                ("a/one:", 5, 0, 1),
                ("a/three:", 1, 0, 0),
                ("a/two:", 3, 0, 0),
            ],
        );
        Screen::new(first, Filter::default(), Order::New)
    }

    fn type_text(screen: &mut Screen, text: &str) {
        text.chars()
            .for_each(|letter| screen.press(Key::Letter(letter)));
    }

    fn chosen(screen: &Screen) -> String {
        let services = screen.services();
        services[screen.place(&services)].service.clone()
    }

    #[test]
    fn the_chosen_row_stays_chosen_wherever_it_goes() {
        let mut screen = screen();
        screen.press(Key::Down);
        assert_eq!(chosen(&screen), "a/two:");
        screen.take(sample(
            1,
            &[
                ("a/one:", 5, 0, 1),
                ("a/three:", 1, 0, 0),
                ("a/two:", 30, 0, 0),
            ],
        ));
        assert_eq!(screen.services()[0].service, "a/two:");
        assert_eq!(chosen(&screen), "a/two:");
        for (key, wanted) in [
            (Key::End, "a/three:"),
            (Key::Down, "a/three:"),
            (Key::Home, "a/two:"),
            (Key::Letter('j'), "a/one:"),
            (Key::PageUp, "a/two:"),
        ] {
            screen.press(key);
            assert_eq!(chosen(&screen), wanted, "{key:?}");
        }
    }

    #[test]
    fn a_services_backends_are_one_key_away_and_back() {
        let mut screen = screen();
        screen.press(Key::Enter);
        assert_eq!(screen.of.as_deref(), Some("a/one:"));
        assert_eq!(screen.backends("a/one:").len(), 2);
        screen.press(Key::Back);
        assert_eq!((screen.of.as_deref(), screen.is_over), (None, false));
        screen.press(Key::Back);
        assert!(screen.is_over);
    }

    #[test]
    fn what_is_typed_behind_a_slash_is_looked_for() {
        let mut screen = screen();
        type_text(&mut screen, "/tq");
        screen.press(Key::Erase);
        assert_eq!((screen.services().len(), screen.is_over), (2, false));
        screen.press(Key::Enter);
        type_text(&mut screen, "s");
        assert_eq!((screen.order, screen.search.as_str()), (Order::Active, "t"));
        screen.press(Key::Back);
        assert_eq!((screen.services().len(), screen.is_over), (3, false));
        // Nothing is found: nothing is chosen.
        type_text(&mut screen, "/nobody");
        screen.press(Key::Enter);
        screen.press(Key::Enter);
        screen.press(Key::Down);
        assert_eq!(screen.of, None);
    }

    #[test]
    fn while_it_is_paused_nothing_moves() {
        let mut screen = screen();
        screen.press(Key::Letter('p'));
        screen.take(sample(1, &[]));
        assert_eq!(screen.services().len(), 3);
        screen.press(Key::Letter('p'));
        screen.take(sample(1, &[]));
        assert_eq!(screen.services().len(), 0);
    }
}
