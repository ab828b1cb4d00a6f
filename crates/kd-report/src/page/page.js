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
(function () {
  var data = document.getElementById("soft-data");
  if (!data) { return; }
  var parsed = JSON.parse(data.textContent);
  var slider = document.getElementById("temperature");
  var shown = document.getElementById("temperature-shown");
  var select = document.getElementById("student");
  var section = document.querySelector(".soft");
  var cells = Array.prototype.slice.call(section.querySelectorAll("[data-who]"));
  function softmax(logits, temperature) {
    var largest = Math.max.apply(null, logits);
    var weights = logits.map(function (logit) { return Math.exp((logit - largest) / temperature); });
    var sum = weights.reduce(function (a, b) { return a + b; }, 0);
    return weights.map(function (weight) { return weight / sum; });
  }
  function show() {
    // From 1 to the highest, evenly in the logarithm.
    var temperature = Math.pow(parsed.highest, slider.value / 1000).toFixed(1);
    slider.dataset.value = temperature;
    slider.setAttribute("aria-valuetext", temperature);
    shown.textContent = temperature;
    section.querySelector(".temperature").textContent = temperature;
    section.querySelector(".chosen").textContent = select.options[select.selectedIndex].text;
    cells.forEach(function (cell) {
      if (cell.className === "student") { cell.dataset.who = select.value; }
      var shares = softmax(parsed.logits[cell.dataset.who][cell.dataset.image], Number(temperature));
      var share = 100 * shares[cell.dataset.class];
      cell.querySelector(".bar").style.width = share.toFixed(2) + "%";
      cell.querySelector(".share").textContent = share.toFixed(1) + " %";
    });
  }
  section.querySelector(".controls").hidden = false;
  section.classList.add("live");
  slider.addEventListener("input", show);
  select.addEventListener("change", show);
  show();
})();
