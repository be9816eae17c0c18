"use strict";
// Before anything is painted: the colours that the reader chose; otherwise those of the system.
try {
  const before = localStorage.getItem("regrow-theme");
  if (before === "dark" || before === "light") document.documentElement.dataset.theme = before;
} catch (refused) {
  // Storage is switched off: the system's colours.
}
