"use strict";
// Everything from the run is put into the page as text (textContent), never as markup.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const said = (tag, text, className) => {
    const node = make(tag, "said" + (className ? " " + className : ""), text);
    node.dir = "auto";
    return node;
  };

  // Theme: the system's until the reader chooses. Storage can be refused for pages opened from disk.
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("regrow-theme");
      localStorage.setItem("regrow-theme", value);
    } catch (refused) {
      return null;
    }
    return value;
  };
  const toggle = $("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const label = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
  };
  const before = stored();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  label();
  systemDark.addEventListener("change", label);
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored(root.dataset.theme);
    label();
  });

  // Where the reader is.
  const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const current = [...links.keys()].find((id) => seen.has(id));
    for (const [id, a] of links) id === current ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current");
  }, { rootMargin: "-12% 0px -70% 0px" });
  for (const id of links.keys()) if ($(id)) watcher.observe($(id));

  // Items.
  const list = $("item-list");
  if (list && data.items.length) {
    const PAGE = 40;
    const arms = data.arms;
    const form = { arm: $("item-arm"), domain: $("item-domain"), search: $("item-search") };
    let shown = PAGE;
    let found = [];
    const haystacks = data.items.map(([id, , domain, question, reference, answers]) =>
      [id, domain, question, reference, ...answers.map((a) => a[0])].join("\n").toLowerCase());

    const card = ([id, suite, domain, question, reference, answers, outcome], arm) => {
      const item = make("li", "item");
      const meta = make("div", "meta");
      const what = outcome[arm];
      if (what) meta.append(make("span", "badge " + (data.tones[what] || ""), data.outcomes[what]));
      meta.append(said("span", domain || suite), make("span", "", suite), said("span", id));
      item.append(meta, said("p", question, "q"));
      const table = make("dl", "answers");
      if (reference) {
        const row = make("div");
        row.append(make("dt", "ref", "Right answer"), said("dd", reference), make("dd", "mark-cell", ""));
        table.append(row);
      }
      answers.forEach(([text, right], i) => {
        const row = make("div", "a" + arms[i].style);
        const verdict = right < 0 ? ["", ""] : right ? ["mark-cell ok", "✓ right"] : ["mark-cell no", "✕ wrong"];
        row.append(make("dt", "", arms[i].name), said("dd", text || "(nothing)"), make("dd", verdict[0], verdict[1]));
        table.append(row);
      });
      item.append(table);
      return item;
    };

    const outcomeNow = () => document.querySelector("input[name=outcome]:checked").value;
    const matches = (what, wanted) => !wanted || what === wanted || (wanted === "kept" && what === "saved");
    const draw = () => {
      const arm = form.arm.value;
      list.replaceChildren(...found.slice(0, shown).map((item) => card(item, arm)));
      $("item-more").hidden = found.length <= shown;
      $("item-status").textContent = found.length
        ? `${found.length.toLocaleString("en")} ${found.length === 1 ? "item" : "items"}, ${Math.min(shown, found.length).toLocaleString("en")} shown`
        : "No item fits this choice.";
    };
    const filter = () => {
      const [arm, domain, wanted] = [form.arm.value, form.domain.value, outcomeNow()];
      const words = form.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const inArm = data.items.map((item, i) =>
        (!domain || item[2] === domain) && words.every((word) => haystacks[i].includes(word)) ? item : null).filter(Boolean);
      for (const input of document.querySelectorAll("input[name=outcome]")) {
        const n = inArm.filter((item) => matches(item[6][arm], input.value)).length;
        input.parentElement.querySelector("b").textContent = n.toLocaleString("en");
      }
      found = inArm.filter((item) => matches(item[6][arm], wanted));
      shown = PAGE;
      draw();
    };
    form.arm.addEventListener("change", filter);
    form.domain.addEventListener("change", filter);
    form.search.addEventListener("input", filter);
    for (const input of document.querySelectorAll("input[name=outcome]")) input.addEventListener("change", filter);
    $("item-more").addEventListener("click", () => {
      const at = shown;
      shown += PAGE;
      draw();
      const next = list.children[at];
      next.tabIndex = -1;
      next.focus({ preventScroll: true });
    });
    filter();
  }

  // The tree: children are made when their parent is opened for the first time.
  const tree = $("tree");
  if (tree && data.tree.length) {
    const who = { u: ["user", "User"], a: ["assistant", "Model"], s: ["system", "System"] };
    const more = (hidden) => make("li", "hidden-count", `${hidden.toLocaleString("en")} more not in this page`);
    const line = (target, [role, text, reason]) => {
      const [css, name] = who[role] || ["", role];
      target.append(make("span", "who " + css, name), said("span", text));
      if (reason) {
        target.classList.add("dropped");
        target.append(" ", make("span", "badge", "dropped: " + reason));
      }
    };
    const branch = (children, hidden) => {
      const inner = make("ul");
      inner.append(...children.map(node));
      if (hidden) inner.append(more(hidden));
      return inner;
    };
    const lazily = (details, children, hidden) => details.addEventListener("toggle", () => {
      if (details.open && !details.dataset.built) {
        details.dataset.built = "1";
        details.append(branch(children, hidden));
      }
    });
    const node = (entry) => {
      const [, , , children, hidden] = entry;
      const item = make("li");
      if (!children.length && !hidden) {
        const leaf = make("div", "leaf");
        line(leaf, entry);
        item.append(leaf);
        return item;
      }
      const details = make("details");
      const summary = make("summary");
      line(summary, entry);
      summary.append(" ", make("span", "count", "· " + (children.length + hidden)));
      details.append(summary);
      lazily(details, children, hidden);
      item.append(details);
      return item;
    };
    tree.replaceChildren(...data.tree.map(([topic, n, kept, roots, hidden]) => {
      const item = make("li");
      const details = make("details");
      const summary = make("summary");
      summary.append(said("span", topic || "(no topic)", "topic"), " ",
        make("span", "count", `· ${kept.toLocaleString("en")} of ${n.toLocaleString("en")} kept`));
      details.append(summary);
      lazily(details, roots, hidden);
      item.append(details);
      return item;
    }));
    tree.querySelector("details").open = true;
  }

  // On paper everything that is folded and small is shown.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll(".dialogues details, details.fold")) details.open = true;
  });
})();
