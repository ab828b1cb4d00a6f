//! Just enough HTML to check a page: tags that match, attributes, tables.

/// Every tag closes in order; text and attributes hold no bare `<`. Returns the tags with their
/// attributes as written.
pub(super) fn checked_tags(html: &str) -> Result<Vec<String>, String> {
    let mut tags = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let end = end_of_tag(rest).ok_or_else(|| format!("a tag without an end: {rest:.40}"))?;
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if tag.starts_with('!') {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            match open.pop() {
                Some(opened) if opened == name => continue,
                opened => return Err(format!("</{name}> closes {opened:?}")),
            }
        }
        let name = tag.split(|c: char| c.is_whitespace() || c == '/').next().unwrap_or("");
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(format!("not a tag: <{tag:.40}>"));
        }
        tags.push(tag.to_owned());
        if tag.ends_with('/') {
            continue;
        }
        // What stands in these is not markup.
        if name == "script" || name == "style" {
            let close = format!("</{name}>");
            let end = rest.find(&close).ok_or_else(|| format!("no {close}"))?;
            rest = &rest[end + close.len()..];
            continue;
        }
        open.push(name);
    }
    if open.is_empty() { Ok(tags) } else { Err(format!("left open: {open:?}")) }
}

fn end_of_tag(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (c == '>' && !quoted).then_some(at)
    })
}

/// The part of the page from the element with that id to the end of its section.
pub(super) fn section<'a>(html: &'a str, id: &str) -> &'a str {
    let start = html.find(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no section {id}"));
    let length = html[start..].find("</section>").unwrap();
    &html[start..start + length]
}

/// The rows of all tables in a part of a page, as their cells' text.
pub(super) fn rows(part: &str) -> Vec<Vec<String>> {
    let between = |text: &str, from: &str, to: &str| -> Vec<String> {
        let pieces = text.split(from).skip(1);
        pieces.map(|piece| piece[..piece.find(to).unwrap()].to_owned()).collect()
    };
    between(part, "<tr>", "</tr>")
        .iter()
        .map(|row| {
            let row = row.replace("<td>", "<th>").replace("</td>", "</th>");
            let row = row.replace(" scope=\"row\"", "").replace(" scope=\"col\"", "");
            between(&row, "<th>", "</th>")
        })
        .collect()
}
