"use strict";
(function () {
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var stored = null;
  // A page opened from a file may be refused its storage.
  try { stored = localStorage.getItem("kd-theme"); } catch (refused) { stored = null; }
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function dark() {
    var chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : system.matches;
  }
  function label() { button.textContent = dark() ? "Light" : "Dark"; }
  if (stored === "light" || stored === "dark") { root.dataset.theme = stored; }
  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("kd-theme", root.dataset.theme); } catch (refused) { /* only for this visit */ }
    label();
  });
  system.addEventListener("change", label);
  label();
})();
