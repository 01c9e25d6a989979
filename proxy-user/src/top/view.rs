//! Draws the screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table, TableState},
};

use super::{
    rows::{BackendRow, Order, ServiceRow},
    screen::Screen,
};

/// Columns of a terminal that has room for all that is known.
const WIDE: u16 = 100;

/// Marks that colour is wanted beside what bold and reverse say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) is_coloured: bool,
}

impl Look {
    fn colour(self, colour: Color) -> Style {
        if self.is_coloured {
            Style::new().fg(colour)
        } else {
            Style::new().add_modifier(Modifier::BOLD)
        }
    }
}

pub(crate) fn draw(frame: &mut Frame<'_>, screen: &Screen, look: Look) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let services = screen.services();
    frame.render_widget(headline(screen, &services), head);
    match &screen.of {
        Some(service) => draw_backends(frame, body, &screen.backends(service), look),
        None => draw_services(frame, body, screen, &services, look),
    }
    frame.render_widget(keys(screen), foot);
}

/// A rate with one digit behind the point, as long as that says something.
pub(crate) fn per_second(rate: f64) -> String {
    if rate >= 1000.0 {
        format!("{rate:.0}")
    } else {
        format!("{rate:.1}")
    }
}

fn headline(screen: &Screen, services: &[ServiceRow]) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let paused = if screen.is_paused { "  PAUSED" } else { "" };
    if let Some(service) = &screen.of {
        return Line::from(vec![
            Span::styled(service.clone(), bold),
            Span::raw(format!(": backends{paused}")),
        ]);
    }
    let new: f64 = services.iter().map(|row| row.new_per_second).sum();
    let errors: f64 = services.iter().map(|row| row.errors_per_second).sum();
    let active: u64 = services.iter().map(|row| row.active).sum();
    Line::from(vec![
        Span::styled("kube-portal", bold),
        Span::raw(format!(
            "  {} Service ports  {} new/s  {active} active  {} errors/s{paused}",
            services.len(),
            per_second(new),
            per_second(errors),
        )),
    ])
}

fn keys(screen: &Screen) -> Line<'static> {
    if screen.is_typing {
        return Line::raw(format!(
            "/{}_   Enter keeps it, Esc forgets it",
            screen.search
        ));
    }
    if screen.of.is_some() {
        return Line::raw("Esc all Services   p pause   q quit");
    }
    let sorted = match screen.order {
        Order::New => "new",
        Order::Active => "active",
        Order::Errors => "errors",
        Order::Name => "name",
    };
    let search = match screen.search.as_str() {
        "" => String::new(),
        text => format!("   only *{text}*"),
    };
    Line::raw(format!(
        "Enter backends   s sort ({sorted})   / search   p pause   q quit{search}"
    ))
}

fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Line::raw(text.into()).right_aligned())
}

fn header(titles: &[&'static str], sorted: Option<usize>) -> Row<'static> {
    let cells = titles.iter().enumerate().map(|(at, title)| {
        let line = Line::raw(*title);
        let line = if at == 0 { line } else { line.right_aligned() };
        let cell = Cell::from(line);
        if sorted == Some(at) {
            cell.style(Style::new().add_modifier(Modifier::UNDERLINED | Modifier::BOLD))
        } else {
            cell
        }
    });
    Row::new(cells).style(Style::new().add_modifier(Modifier::BOLD))
}

fn draw_services(
    frame: &mut Frame<'_>,
    area: Rect,
    screen: &Screen,
    services: &[ServiceRow],
    look: Look,
) {
    let is_wide = area.width >= WIDE;
    let sorted = match screen.order {
        Order::Name => 0,
        Order::New => 1,
        Order::Active => 2,
        Order::Errors => 3,
    };
    let mut titles = vec!["SERVICE", "NEW/S", "ACTIVE", "ERRORS/S", "BACKENDS"];
    let mut widths = vec![
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    if is_wide {
        titles.extend(["CONNECTIONS", "ERRORS"]);
        widths.extend([Constraint::Length(13), Constraint::Length(10)]);
    }
    let rows = services.iter().map(|row| {
        let mut cells = vec![
            Cell::from(row.service.clone()),
            right(per_second(row.new_per_second)),
            right(row.active.to_string()),
            right(per_second(row.errors_per_second)),
            right(row.backends.to_string()),
        ];
        if is_wide {
            cells.extend([
                right(row.connections.to_string()),
                right(row.errors.to_string()),
            ]);
        }
        let style = if row.errors_per_second > 0.0 {
            look.colour(Color::Red)
        } else if row.backends == 0 {
            look.colour(Color::Yellow)
        } else {
            Style::new()
        };
        Row::new(cells).style(style)
    });
    let table = Table::new(rows, widths)
        .header(header(&titles, Some(sorted)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let place = (!services.is_empty()).then(|| screen.place(services));
    let mut state = TableState::default().with_selected(place);
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_backends(frame: &mut Frame<'_>, area: Rect, backends: &[BackendRow], look: Look) {
    let titles = [
        "BACKEND",
        "NEW/S",
        "ACTIVE",
        "CONNECTIONS",
        "STATE",
        "PLACE",
    ];
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(11),
        Constraint::Length(10),
    ];
    let rows = backends.iter().map(|row| {
        let style = match row.state {
            "passed over" => look.colour(Color::Red),
            "draining" => look.colour(Color::Yellow),
            _ => Style::new(),
        };
        Row::new([
            Cell::from(row.address.to_string()),
            right(per_second(row.new_per_second)),
            right(row.active.to_string()),
            right(row.connections.to_string()),
            right(row.state),
            right(row.place),
        ])
        .style(style)
    });
    frame.render_widget(Table::new(rows, widths).header(header(&titles, None)), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::{rows::tests::sample, screen::Key},
        *,
    };
    use crate::inspect::Filter;

    fn screen() -> Screen {
        let before = sample(
            0,
            &[
                ("default/web:http", 100, 0, 3),
                ("kube-system/dns:dns", 7, 1, 0),
            ],
        );
        let now = sample(
            2,
            &[
                ("default/web:http", 125, 0, 3),
                ("kube-system/dns:dns", 7, 5, 0),
            ],
        );
        let mut screen = Screen::new(before, Filter::default(), Order::New);
        screen.take(now);
        screen
    }

    fn lines(screen: &Screen, width: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, 6)).unwrap();
        let look = Look { is_coloured: false };
        terminal.draw(|frame| draw(frame, screen, look)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| -> String {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        };
        (0..6).map(row).collect()
    }

    #[test]
    fn services_fit_into_eighty_columns() {
        assert_eq!(
            lines(&screen(), 80),
            [
                "kube-portal  2 Service ports  12.5 new/s  3 active  2.0 errors/s",
                "",
                "SERVICE                                      NEW/S    ACTIVE  ERRORS/S  BACKENDS",
                "default/web:http                              12.5         3       0.0         1",
                "kube-system/dns:dns                            0.0         0       2.0         1",
                "Enter backends   s sort (new)   / search   p pause   q quit",
            ]
        );
    }

    #[test]
    fn a_wide_terminal_shows_the_sums_too() {
        let wide = lines(&screen(), 120);
        assert!(
            wide[2].ends_with("BACKENDS   CONNECTIONS     ERRORS"),
            "{}",
            wide[2]
        );
        assert!(wide[3].ends_with("125          0"), "{}", wide[3]);
    }

    #[test]
    fn backends_are_shown_with_state_and_place() {
        let mut screen = screen();
        screen.press(Key::Enter);
        let shown = lines(&screen, 80);
        assert_eq!(shown[0], "default/web:http: backends");
        assert!(shown[3].starts_with("10.1.1.2:8080"), "{shown:?}");
        assert!(shown[3].ends_with("serving  this node"), "{shown:?}");
        assert!(shown[4].ends_with("draining  elsewhere"), "{shown:?}");
        assert_eq!(shown[5], "Esc all Services   p pause   q quit");
    }

    #[test]
    fn what_is_typed_is_seen() {
        let mut screen = screen();
        "/dns"
            .chars()
            .for_each(|letter| screen.press(Key::Letter(letter)));
        let shown = lines(&screen, 80);
        assert_eq!(shown[5], "/dns_   Enter keeps it, Esc forgets it");
        assert!(shown[3].starts_with("kube-system/dns:dns") && shown[4].is_empty());
    }
}
